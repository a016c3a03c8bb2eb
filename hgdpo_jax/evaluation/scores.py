"""The scores that an evaluation looks at: the training scorer, the held-out judge and the attribute oracle."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.toon.oracle import AttributeOracle


@dataclasses.dataclass(frozen=True)
class Score:
    """A function of images and their prompts, higher is better, and how people call it.

    `accuracy` is what the function itself is worth on real images, within 0 to 1, where that was measured.
    """

    label: str
    description: str
    function: Callable[[UInt8[np.ndarray, "n height width 3"], Sequence[str]], Float[np.ndarray, " n"]]
    accuracy: float | None = None


def load_scores(
    *, scorer: PickScore, judge: str, oracle: str, dtype: str, framing: str, device_batch: int
) -> dict[str, Score]:
    """The scorer's as "scorer", and "judge" and "oracle" where their weights are named, in this order."""

    def score_of(loaded: PickScore, label: str, description: str) -> Score:
        return Score(label, description, functools.partial(loaded.score, device_batch=device_batch))

    scores = {"scorer": score_of(scorer, "Training scorer", "chose the training pairs")}
    if judge:
        loaded = PickScore.load(judge, dtype, framing)
        scores["judge"] = score_of(loaded, "Held-out judge", "never used to choose pairs")
    if oracle:
        classifier = AttributeOracle.load(oracle)
        scores["oracle"] = Score(
            "Attribute oracle",
            "per cent of the prompt's attributes that the image shows",
            classifier.score,
            classifier.accuracy["all"],
        )
    return scores
