"""How the channel statistics of latents drift apart with the rank of an image in its pool (HG-DPO, Fig. 5b).

If the means drift apart with the rank and the deviations do not, DPO learns a colour shift, which matching of means
cures.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32


@dataclasses.dataclass(frozen=True)
class RankStatistics:
    """Cosine distances between the channel statistics of the best and the n-th best image.

    Means over the pools of `prompts` prompts, one value a rank, with standard errors.
    """

    prompts: int
    ranks: Sequence[int]
    mean_distance: Sequence[float]
    mean_distance_error: Sequence[float]
    deviation_distance: Sequence[float]
    deviation_distance_error: Sequence[float]


def channel_statistics(latents: Float[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "2 n c"]:
    """Means and standard deviations of the channels of each image, summed in float32.

    They are not finite where the latents are not.
    """
    n, h, w, c = latents.shape
    statistics = np.empty((2, n, c), np.float32)
    # One image at a time stays in the caches. Whole rows are added up first: a sum over all pixels at once would run
    # over c numbers at a time, which takes seven times as long.
    with np.errstate(invalid="ignore"):
        for image, (mean, deviation) in zip(latents, statistics.swapaxes(0, 1), strict=True):
            rows = image.reshape(h, w * c).astype(np.float32)
            mean[:] = rows.sum(axis=0).reshape(w, c).mean(axis=0) / h
            rows -= np.tile(mean, w)
            rows *= rows
            deviation[:] = np.sqrt(rows.sum(axis=0).reshape(w, c).mean(axis=0) / h)
    return statistics


def rank_distances(
    statistics: Float[np.ndarray, "2 pools size c"], scores: Float[np.ndarray, "pools size"]
) -> Float[np.ndarray, "2 pools others"]:
    """Cosine distances between the channel means, and deviations, of the best and each next best image of each pool.

    Of equal scores the earlier image ranks higher.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[None, ..., None]
    ranked = np.take_along_axis(statistics, order, axis=2)
    return _cosine_distance(ranked[:, :, :1], ranked[:, :, 1:])


def summarize_ranks(distances: Float[np.ndarray, "2 pools others"]) -> RankStatistics | None:
    """Means of `rank_distances` over pools, and their standard errors, from the second rank on; None without a pool."""
    _, count, others = distances.shape
    if not count:
        return None
    distances = distances.astype(np.float64)
    means = distances.mean(axis=1)
    errors = distances.std(axis=1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros_like(means)
    ranks = list(range(2, others + 2))
    return RankStatistics(count, ranks, *(row.tolist() for both in zip(means, errors, strict=True) for row in both))


def _cosine_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return 1.0 - (one * other).sum(axis=-1) / np.maximum(norms, np.finfo(np.float32).tiny)
