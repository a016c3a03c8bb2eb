"""How different the images of one prompt are (HG-DPO, Fig. 8)."""

import numpy as np
from jaxtyping import Float


def diversity(embeddings: Float[np.ndarray, "prompts seeds p"]) -> float | None:
    """Mean cosine distance of two images of a prompt, from unit embeddings; None where prompts have a single image.

    Images whose embedding is not finite are left out, and prompts that then have a single one.
    """
    usable = np.isfinite(embeddings).all(axis=-1)
    several = usable.sum(axis=1) >= 2
    if not several.any():
        return None
    embeddings, seeds = np.where(usable[..., None], embeddings, 0)[several], usable.sum(axis=1)[several]
    # Sum over all pairs, an image with itself among them, whose cosine is one.
    total = (embeddings.sum(axis=1, dtype=np.float64) ** 2).sum(axis=-1) - seeds
    return float(1.0 - (total / (seeds * (seeds - 1))).mean())
