"""How different the images of one prompt are (HG-DPO, Fig. 8)."""

import numpy as np
from jaxtyping import Float


def diversity(embeddings: Float[np.ndarray, "prompts seeds p"]) -> float | None:
    """Mean cosine distance of two images of a prompt, from unit embeddings; None where a prompt has a single image."""
    seeds = embeddings.shape[1]
    if seeds < 2:
        return None
    # Sum over all pairs, an image with itself among them, whose cosine is one.
    total = (embeddings.sum(axis=1, dtype=np.float64) ** 2).sum(axis=-1) - seeds
    return float(1.0 - (total / (seeds * (seeds - 1))).mean())
