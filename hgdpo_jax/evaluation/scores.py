"""The scores that an evaluation looks at, by name: "scorer", which chose the pairs, and those that only evaluate."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from hgdpo_jax.artifacts import fingerprint_of
from hgdpo_jax.errors import UserError
from hgdpo_jax.scorers.sources import FUNCTION, ScorerSource

TRAINING = "scorer"


@dataclasses.dataclass(frozen=True)
class Score:
    """A function of images and their prompts, higher is better, and how people call it.

    `fingerprint` names what decides its values; `embed` gives unit embeddings of images where the scorer has some.
    """

    name: str
    kind: str
    label: str
    description: str
    fingerprint: str
    function: Callable[[UInt8[np.ndarray, "n height width 3"], Sequence[str]], Float[np.ndarray, " n"]]
    embed: Callable[[UInt8[np.ndarray, "n height width 3"]], Float[np.ndarray, "n p"]] | None = None

    def to_dict(self) -> dict[str, str]:
        """What people want to know of it, for JSON."""
        return {"kind": self.kind, "label": self.label, "description": self.description}


def score_sources(training: str, others: Sequence[str]) -> dict[str, ScorerSource]:
    """The training scorer's source as "scorer", then the others' by name; raises UserError where two share one."""
    sources = {TRAINING: ScorerSource.parse(training)}
    for text in others:
        source = ScorerSource.parse(text)
        if source.name in sources:
            raise UserError(
                f"evaluate.scorers has {source.name} twice, in {text!r} and {sources[source.name].text!r}: "
                "put NAME= before one of them"
            )
        sources[source.name] = source
    return sources


def load_scores(
    training: str, others: Sequence[str], *, dtype: str, framing: str, device_batch: int
) -> dict[str, Score]:
    """The scores of `score_sources`, in this order; raises UserError where one cannot be loaded."""
    scores = {}
    for name, source in score_sources(training, others).items():
        scorer = source.load(dtype, framing)
        embed = getattr(scorer, "embed_images", None)
        scores[name] = Score(
            name=name,
            kind=source.kind,
            label="training scorer" if name == TRAINING else source.label,
            description=_description(name, source, scorer),
            fingerprint=fingerprint_of({"scorer": source.fingerprint(), "dtype": dtype, "framing": framing}),
            function=functools.partial(scorer.score, device_batch=device_batch),
            embed=embed and functools.partial(embed, device_batch=device_batch),
        )
    return scores


def headline(scores: Sequence[str]) -> str:
    """The name of the score to lead with: the first that did not choose the pairs, where there is one."""
    return next((name for name in scores if name != TRAINING), TRAINING)


def _description(name: str, source: ScorerSource, scorer: Any) -> str:
    if source.kind == FUNCTION:
        return getattr(scorer.function, "description", "") or f"a function of yours, {source.source}"
    return f"{scorer.label}, {'chose the training pairs' if name == TRAINING else 'never used to choose pairs'}"
