"""How much higher one model scores than another on the same prompts."""

import dataclasses
import math

import numpy as np
from scipy import stats

from hgdpo_jax.evaluation.win_rate import prompt_means


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Mean of A's score minus B's over prompts, its 95 % interval, and the p-value of no difference (paired t)."""

    mean: float
    low: float
    high: float
    p_value: float
    prompts: int


def paired_difference(scores_a: np.ndarray, scores_b: np.ndarray) -> PairedDifference:
    """A's lead over B in scores [prompts, seeds]; the seeds are averaged within the prompt, which is the trial.

    One prompt tells nothing: its interval is infinite. Where all prompts differ by the same, the interval is a point.
    """
    means_a, means_b = prompt_means(scores_a, scores_b)
    differences = means_a - means_b
    count, mean = len(differences), float(differences.mean())
    if count == 1:
        return PairedDifference(mean, -math.inf, math.inf, 1.0, 1)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return PairedDifference(mean, mean, mean, 0.0 if mean else 1.0, count)
    half_width = float(stats.t.ppf(0.975, count - 1)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return PairedDifference(mean, mean - half_width, mean + half_width, p_value, count)
