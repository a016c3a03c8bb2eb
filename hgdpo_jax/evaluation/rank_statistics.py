"""How the channel statistics of latents drift apart with the rank of an image in its pool (HG-DPO, Fig. 5b)."""

from typing import Any

import numpy as np
from jaxtyping import Float


class RankStatistics:
    """Cosine distances between the channel means, and standard deviations, of the best and the n-th best image.

    If the means drift apart with n and the deviations do not, DPO learns a colour shift, and matching means cures it.
    """

    def __init__(self) -> None:
        self._distances: list[np.ndarray] = []

    def add(self, latents: Float[np.ndarray, "pools size h w c"], scores: Float[np.ndarray, "pools size"]) -> None:
        """Counts pools in; of equal scores the earlier image ranks higher."""
        order = np.argsort(-scores, axis=1, kind="stable")[..., None]
        statistics = (latents.mean(axis=(2, 3), dtype=np.float32), latents.std(axis=(2, 3), dtype=np.float32))
        ranked = [np.take_along_axis(values, order, axis=1) for values in statistics]
        self._distances.append(np.stack([_cosine_distance(values[:, :1], values[:, 1:]) for values in ranked]))

    def to_dict(self) -> dict[str, Any]:
        """Means over pools, and their standard errors, from the second rank on; {} where there is no pool."""
        if not self._distances:
            return {}
        distances = np.concatenate(self._distances, axis=1).astype(np.float64)
        means, count = distances.mean(axis=1), distances.shape[1]
        errors = distances.std(axis=1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros_like(means)
        return {
            "prompts": count,
            "ranks": list(range(2, distances.shape[2] + 2)),
            "mean_distance": means[0].tolist(),
            "deviation_distance": means[1].tolist(),
            "mean_distance_error": errors[0].tolist(),
            "deviation_distance_error": errors[1].tolist(),
        }


def _cosine_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return 1.0 - (one * other).sum(axis=-1) / np.maximum(norms, np.finfo(np.float32).tiny)
