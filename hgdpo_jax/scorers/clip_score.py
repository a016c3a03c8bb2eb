"""CLIP score: how well an image shows what its prompt says (Hessel et al., 2021)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from hgdpo_jax.scorers.clip_scorer import CLIPScorer


class CLIPScore(CLIPScorer):
    """100 times the cosine of image and prompt, as torchmetrics and papers on text-to-image models give it.

    Negative cosines, which these set to 0, stay: they still order images. The first paper has 2.5 in place of 100.
    """

    label = "CLIP score"

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Float[Array, "n p"]
    ) -> Float[Array, "n"]:
        """Scores of images, each against its own prompt."""
        return 100.0 * jnp.sum(self.embed_pixels(parameters, pixels) * prompts, axis=-1)
