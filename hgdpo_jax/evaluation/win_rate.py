"""Win rates of one model over another from scores of their images (HG-DPO, Sec. 4)."""

import dataclasses
import math

import numpy as np
from scipy import stats

from hgdpo_jax.errors import UserError

# Standard normal quantile of a two-sided 95 % interval.
Z_95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Share of prompts on which A is better, ties counted half, with its Wilson 95 % interval (all within 0 to 1)."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    prompts: int

    @property
    def p_value(self) -> float:
        """Of the two-sided exact sign test that A is no better than B: ties are left out; 1 where all are ties."""
        decided = self.wins + self.losses
        return float(stats.binomtest(self.wins, decided).pvalue) if decided else 1.0


def wilson_interval(rate: float, count: int) -> tuple[float, float]:
    """Wilson 95 % interval of a share `rate` seen in `count` trials.

    With ties counted half the variance of a trial is at most rate * (1 - rate), so the interval errs on the wide side.
    """
    square = Z_95**2
    center = (rate + square / (2 * count)) / (1 + square / count)
    half_width = Z_95 * math.sqrt(rate * (1 - rate) / count + square / (4 * count**2)) / (1 + square / count)
    # Rounding puts the bounds of 0 and 1 a hair inside.
    return max(0.0, min(rate, center - half_width)), min(1.0, max(rate, center + half_width))


def comparable(scores_a: np.ndarray, scores_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64; NaN marks an unusable image.

    Raises ValueError where they are not scores [prompts, seeds] of the same prompts.
    """
    scores_a, scores_b = np.asarray(scores_a, np.float64), np.asarray(scores_b, np.float64)
    if scores_a.ndim != 2 or scores_b.ndim != 2 or len(scores_a) != len(scores_b) or not scores_a.size * scores_b.size:
        raise ValueError(
            f"expected scores [prompts, seeds] of the same prompts, got {scores_a.shape}, {scores_b.shape}"
        )
    if np.isinf(scores_a).any() or np.isinf(scores_b).any():
        raise ValueError("scores must be finite to be compared, or NaN where an image is unusable")
    return scores_a, scores_b


def prompt_means(scores_a: np.ndarray, scores_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean score of each prompt on both sides, over its usable images, for prompts that have some on both sides.

    Raises UserError where no prompt is left.
    """
    means_a, means_b = (means_of_prompts(scores) for scores in comparable(scores_a, scores_b))
    both = np.isfinite(means_a) & np.isfinite(means_b)
    if not both.any():
        raise UserError(
            "no prompt has an image with a finite score from both models: check their weights and "
            "config.evaluate.scorers"
        )
    return means_a[both], means_b[both]


def means_of_prompts(values: np.ndarray) -> np.ndarray:
    """Mean of each prompt over its usable images, from values [prompts, seeds]; NaN where it has none."""
    usable = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(usable, values, 0).sum(axis=1) / usable.sum(axis=1)


def win_rate(scores_a: np.ndarray, scores_b: np.ndarray) -> WinRate:
    """Win rate of A over B from scores [prompts, seeds]; the seeds are averaged within the prompt first.

    Scores compare only within one prompt, and images of one prompt are not independent: the prompt is the trial. Exact
    equality of the float64 means is a tie. The two sides may have different numbers of seeds.
    """
    return _count(*prompt_means(scores_a, scores_b))


def per_image_win_rate(scores_a: np.ndarray, scores_b: np.ndarray) -> float:
    """Share of images [prompts, seeds] on which A beats B's image of the same prompt and seed, ties counted half.

    It has no interval: the images of one prompt are not independent trials.
    """
    scores_a, scores_b = comparable(scores_a, scores_b)
    if scores_a.shape != scores_b.shape:
        raise ValueError(f"images are compared seed by seed, but the scores are {scores_a.shape} and {scores_b.shape}")
    both = ~(np.isnan(scores_a) | np.isnan(scores_b))
    # The usable images of a prompt may be others on the two sides.
    return _count(scores_a[both], scores_b[both]).rate if both.any() else 0.5


def _count(values_a: np.ndarray, values_b: np.ndarray) -> WinRate:
    wins, ties = int(np.sum(values_a > values_b)), int(np.sum(values_a == values_b))
    rate = (wins + ties / 2) / len(values_a)
    low, high = wilson_interval(rate, len(values_a))
    return WinRate(rate, low, high, wins, ties, len(values_a) - wins - ties, len(values_a))
