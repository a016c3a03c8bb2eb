"""What the training pairs are worth, seen before anything is trained on them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from hgdpo_jax.evaluation.win_rate import WinRate, win_rate


@dataclasses.dataclass(frozen=True)
class PairCheck:
    """Winners against losers by every score there is; the judge and the oracle had no part in choosing them.

    `spread` is by how much the training scorer prefers the winner, on average. The oracle's means are in per cent of
    the prompt's attributes shown.
    """

    pairs: int
    spread: float
    judge: WinRate | None = None
    oracle_winner: float | None = None
    oracle_loser: float | None = None

    @property
    def oracle_points(self) -> float | None:
        """How far the winners lie above the losers by the oracle, in points of its per cent."""
        if self.oracle_winner is None or self.oracle_loser is None:
            return None
        return self.oracle_winner - self.oracle_loser

    def __str__(self) -> str:
        lines = [f"the training scorer sets the {self.pairs:,} pairs apart by {self.spread:.2f} on average"]
        if self.judge:
            lines.append(
                f"winners beat losers by the held-out judge in {100 * self.judge.rate:.1f} % "
                f"({100 * self.judge.low:.1f} to {100 * self.judge.high:.1f})"
            )
        if self.oracle_points is not None:
            lines.append(
                f"by the oracle winners show {self.oracle_winner:.1f} % of the prompt's attributes, "
                f"losers {self.oracle_loser:.1f} %: {self.oracle_points:+.1f} points"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PairCheck":
        """The inverse of `to_dict`."""
        return cls(**{**values, "judge": values["judge"] and WinRate(**values["judge"])})


def check_pairs(
    winners: Mapping[str, Float[np.ndarray, " n"]], losers: Mapping[str, Float[np.ndarray, " n"]]
) -> PairCheck:
    """Compares scores by name, of which "judge" and "oracle" may be missing, "scorer" not."""
    return PairCheck(
        pairs=len(winners["scorer"]),
        spread=float(np.mean(winners["scorer"] - losers["scorer"], dtype=np.float64)),
        judge=win_rate(winners["judge"][:, None], losers["judge"][:, None]) if "judge" in winners else None,
        oracle_winner=float(np.mean(winners["oracle"], dtype=np.float64)) if "oracle" in winners else None,
        oracle_loser=float(np.mean(losers["oracle"], dtype=np.float64)) if "oracle" in losers else None,
    )
