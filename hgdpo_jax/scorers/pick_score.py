"""PickScore: how well people would like an image for a prompt, by a CLIP model."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from hgdpo_jax.scorers.clip_scorer import CLIPScorer


class PickScore(CLIPScorer):
    """A CLIP model used as PickScore uses it: `exp(logit_scale)` times the cosine of image and prompt."""

    label = "PickScore"

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Float[Array, "n p"]
    ) -> Float[Array, "n"]:
        """Scores of images, each against its own prompt."""
        embeddings = self.embed_pixels(parameters, pixels)
        return jnp.exp(parameters["logit_scale"]) * jnp.sum(embeddings * prompts, axis=-1)
