"""Compares two models by everything that was measured of both."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from hgdpo_jax.evaluation.color_shift import ColorShift, shift_between
from hgdpo_jax.evaluation.measures import SHARE, About
from hgdpo_jax.evaluation.prompt_means import Mean, mean_of_images, paired_difference
from hgdpo_jax.evaluation.results import ModelResults, Results
from hgdpo_jax.evaluation.win_rate import WinRate, per_image_win_rate, win_rate


@dataclasses.dataclass(frozen=True)
class ScoreComparison:
    """Everything that one score says of a tuned model against its base."""

    about: About
    win_rate: WinRate
    per_image_win_rate: float
    base_mean: float
    tuned_mean: float


@dataclasses.dataclass(frozen=True)
class MeasureComparison:
    """A measure of both models, and the difference over prompts."""

    about: About
    base: Mean
    tuned: Mean
    difference: Mean


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model, the tuned one, against the one that all are compared with, the base."""

    label: str
    scores: Mapping[str, ScoreComparison]
    measures: Mapping[str, MeasureComparison]
    color_shift: ColorShift
    base_diversity: float | None
    diversity: float | None


def compare_scores(tuned_scores: np.ndarray, base_scores: np.ndarray, about: About) -> ScoreComparison:
    """Both win rates and both means of one score of tuned and base images, each [prompts, seeds] with equal seeds."""
    return ScoreComparison(
        about=about,
        win_rate=win_rate(tuned_scores, base_scores),
        per_image_win_rate=per_image_win_rate(tuned_scores, base_scores),
        base_mean=float(np.nanmean(base_scores, dtype=np.float64)),
        tuned_mean=float(np.nanmean(tuned_scores, dtype=np.float64)),
    )


def compare(results: Results, base: ModelResults, tuned: ModelResults) -> Comparison:
    """Compares two models of an evaluation."""
    scores, measures = {}, {}
    for name, about in results.scores.items():
        scores[name] = compare_scores(tuned.scores[name], base.scores[name], about)
    for name, about in results.measures.items():
        one, other, share = base.measures[name], tuned.measures[name], about.kind == SHARE
        difference = paired_difference(other, one)
        measures[name] = MeasureComparison(about, mean_of_images(one, share), mean_of_images(other, share), difference)
    return Comparison(
        label=tuned.label,
        scores=scores,
        measures=measures,
        color_shift=shift_between(base.colors, tuned.colors),
        base_diversity=base.diversity,
        diversity=tuned.diversity,
    )
