"""The scores that an evaluation looks at: the training scorer, the held-out judge and the attribute oracle."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from hgdpo_jax.pipelines.pick_score import PickScore
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
    *, scorer: str, judge: str, oracle: str, dtype: str, framing: str, device_batch: int
) -> dict[str, Score]:
    """Those of "scorer", "judge" and "oracle" whose weights are named, in this order."""
    scores = {}
    for name, source, label, description in (
        ("scorer", scorer, "Training scorer", "chose the training pairs"),
        ("judge", judge, "Held-out judge", "never used to choose pairs"),
    ):
        if source:
            loaded = PickScore.load(source, dtype, framing)
            scores[name] = Score(label, description, functools.partial(loaded.score, device_batch=device_batch))
    if oracle:
        classifier = AttributeOracle.load(oracle)
        scores["oracle"] = Score(
            "Attribute oracle",
            "per cent of the prompt's attributes that the image shows",
            classifier.score,
            classifier.accuracy["all"],
        )
    return scores
