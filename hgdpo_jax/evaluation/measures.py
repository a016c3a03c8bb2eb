"""What an evaluation measures, by name.

Scores compare models within a prompt: "scorer", which chose the pairs, and those that only evaluate. Measures describe
each model by itself: a function that returns booleans gives a share, one that returns numbers a mean.

my_measures:has_a_face            a function of yours: (images, prompts) -> a bool or a number for each
faces=my_measures:has_a_face      with a name of its own
faces                             one that a plugin names among its scorers
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from hgdpo_jax.artifacts import fingerprint_of
from hgdpo_jax.errors import UserError
from hgdpo_jax.scorers.sources import FUNCTION, ScorerSource
from hgdpo_jax.scorers.user_function import UserFunction

TRAINING = "scorer"
SHARE, MEAN = "share", "mean"


@dataclasses.dataclass(frozen=True)
class About:
    """How people call a score or a measure; `kind` is that of a scorer, or SHARE or MEAN."""

    kind: str
    label: str
    description: str


@dataclasses.dataclass(frozen=True)
class Measure:
    """A function of images and their prompts, which gives a number for each.

    `fingerprint` names what decides its values; `embed` gives unit embeddings of images if the scorer has them.
    """

    about: About
    fingerprint: str
    function: Callable[[UInt8[np.ndarray, "n height width 3"], Sequence[str]], Float[np.ndarray, " n"]]
    embed: Callable[[UInt8[np.ndarray, "n height width 3"]], Float[np.ndarray, "n p"]] | None = None


def score_sources(training: str, others: Sequence[str]) -> dict[str, ScorerSource]:
    """The training scorer's source, if one is given, as "scorer", then the others' by name.

    Raises UserError where there is none, or two share a name.
    """
    if not training and not others:
        raise UserError("no scorer is given: set config.weights.scorer, for example to yuvalkirstain/PickScore_v1")
    sources = {TRAINING: ScorerSource.parse(training, "config.weights.scorer")} if training else {}
    for text in others:
        _add(sources, ScorerSource.parse(text, "config.evaluate.scorers"))
    return sources


def measure_sources(texts: Sequence[str], scores: Mapping[str, ScorerSource]) -> dict[str, ScorerSource]:
    """The measures' functions by name; raises UserError where a text names none, or two, or a score, share a name."""
    sources = dict(scores)
    for text in texts:
        source = ScorerSource.parse(text, "config.evaluate.measures")
        if source.kind != FUNCTION:
            raise UserError(
                f"config.evaluate.measures has {text!r}, expected module:function or the name of a plugin's"
            )
        _add(sources, source)
    return {name: source for name, source in sources.items() if name not in scores}


def load_scores(sources: Mapping[str, ScorerSource], dtype: str, framing: str, device_batch: int) -> dict[str, Measure]:
    """The scores of these sources, in this order; raises UserError where one cannot be loaded."""
    scores = {}
    for name, source in sources.items():
        scorer = source.load(dtype, framing)
        embed = getattr(scorer, "embed_images", None)
        label = "training scorer" if name == TRAINING else source.label
        scores[name] = Measure(
            About(source.kind, label, _description(name, source, scorer)),
            fingerprint_of({"scorer": source.fingerprint(), "dtype": dtype, "framing": framing}),
            functools.partial(scorer.score, device_batch=device_batch),
            embed and functools.partial(embed, device_batch=device_batch),
        )
    return scores


def load_measures(sources: Mapping[str, ScorerSource], prompt: str, width: int, height: int) -> dict[str, Measure]:
    """The measures of these sources, each tried on black pictures of a prompt; raises UserError where one fails."""
    measures = {}
    for name, source in sources.items():
        function = source.load()
        assert isinstance(function, UserFunction)
        kind = SHARE if function.try_out(prompt, width, height).dtype == bool else MEAN
        about = About(kind, source.label, _description(name, source, function))
        measures[name] = Measure(about, source.fingerprint(), function.score)
    return measures


def headline(scores: Sequence[str]) -> str:
    """The name of the score to lead with: the first that did not choose the pairs, where there is one."""
    return next((name for name in scores if name != TRAINING), TRAINING)


def _add(sources: dict[str, ScorerSource], source: ScorerSource) -> None:
    if source.name in sources:
        raise UserError(
            f"{source.setting} has {source.name} twice, in {source.text!r} and {sources[source.name].text!r}: "
            "put NAME= before one of them"
        )
    sources[source.name] = source


def _description(name: str, source: ScorerSource, scorer: Any) -> str:
    if source.kind == FUNCTION:
        return getattr(scorer.function, "description", "") or f"a function of yours, {source.source}"
    return f"{scorer.label}, {'chose the training pairs' if name == TRAINING else 'never used to choose pairs'}"
