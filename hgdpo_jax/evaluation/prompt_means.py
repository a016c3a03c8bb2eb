"""Means over prompts, which are the trials: images of one prompt are not independent."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float
from scipy import stats

from hgdpo_jax.evaluation.win_rate import means_of_prompts, prompt_means, wilson_interval


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean over prompts, its 95 % interval, and the p-value of a mean of zero (t)."""

    mean: float
    low: float
    high: float
    p_value: float
    prompts: int


def mean_over_prompts(values: Float[np.ndarray, " prompts"]) -> Mean:
    """Mean of the values. The interval of one value is infinite; that of equal values is a point."""
    count, mean = len(values), float(values.mean())
    if count == 1:
        return Mean(mean, -math.inf, math.inf, 1.0, 1)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return Mean(mean, mean, mean, 0.0 if mean else 1.0, count)
    half_width = float(stats.t.ppf(0.975, count - 1)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return Mean(mean, mean - half_width, mean + half_width, p_value, count)


def paired_difference(values_a: np.ndarray, values_b: np.ndarray) -> Mean:
    """Mean of A minus B from values [prompts, seeds] of the same prompts; seeds are averaged within the prompt."""
    means_a, means_b = prompt_means(values_a, values_b)
    return mean_over_prompts(means_a - means_b)


def mean_of_images(values: Float[np.ndarray, "prompts seeds"], share: bool) -> Mean:
    """Mean of usable images; of a `share`, whose values are 0 or 1, with Wilson's interval."""
    means = means_of_prompts(values)
    found = mean_over_prompts(means[np.isfinite(means)])
    if not share:
        return found
    low, high = wilson_interval(found.mean, found.prompts)
    return dataclasses.replace(found, low=low, high=high)
