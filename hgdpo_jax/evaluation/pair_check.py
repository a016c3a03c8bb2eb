"""Measures the quality of the training pairs before training."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from hgdpo_jax.evaluation.measures import TRAINING
from hgdpo_jax.evaluation.win_rate import WinRate, win_rate

CHECK = "check.json"
# The pairs that are checked of a larger number.
MOST_PAIRS = 1024


@dataclasses.dataclass(frozen=True)
class PairScore:
    """Winners against losers by one score that had no part in choosing them."""

    label: str
    win_rate: WinRate
    winner_mean: float
    loser_mean: float

    @property
    def difference(self) -> float:
        """By how much the winners lie above the losers, on average."""
        return self.winner_mean - self.loser_mean


@dataclasses.dataclass(frozen=True)
class PairCheck:
    """Winners against losers: the training scorer's mean margin of the winner over the loser, and the other scores."""

    pairs: int
    margin: float
    scores: Mapping[str, PairScore]

    def __str__(self) -> str:
        lines = [f"the training scorer sets the {self.pairs:,} pairs apart by {self.margin:.2f} on average"]
        for score in self.scores.values():
            rate = score.win_rate
            lines.append(
                f"by the {score.label} winners beat losers in {100 * rate.rate:.1f} % "
                f"({100 * rate.low:.1f} to {100 * rate.high:.1f}), mean {score.winner_mean:.2f} against "
                f"{score.loser_mean:.2f}: {score.difference:+.2f}"
            )
        return "\n".join(lines)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PairCheck":
        """The inverse of `dataclasses.asdict`."""
        scores = values["scores"]
        parsed = {name: PairScore(**of | {"win_rate": WinRate(**of["win_rate"])}) for name, of in scores.items()}
        return cls(values["pairs"], values["margin"], parsed)


def read_check(folder: epath.Path) -> PairCheck:
    """What `check_pairs` wrote into its folder."""
    return PairCheck.from_dict(json.loads((folder / CHECK).read_text()))


def check_pairs(
    winners: Mapping[str, Float[np.ndarray, " n"]],
    losers: Mapping[str, Float[np.ndarray, " n"]],
    labels: Mapping[str, str],
) -> PairCheck:
    """Compares scores by name, "scorer" being the one that chose the pairs."""
    scores = {}
    for name in winners:
        if name != TRAINING:
            sides = winners[name], losers[name]
            rate = win_rate(*(side[:, None] for side in sides))
            scores[name] = PairScore(labels[name], rate, *(float(np.mean(side, dtype=np.float64)) for side in sides))
    margin = np.mean(winners[TRAINING] - losers[TRAINING], dtype=np.float64)
    return PairCheck(len(winners[TRAINING]), float(margin), scores)
