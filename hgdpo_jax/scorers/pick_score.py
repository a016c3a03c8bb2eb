"""PickScore: how well people would like an image for a prompt, by a CLIP model."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax.scorers.clip_scorer import CLIPScorer


class PickScore(CLIPScorer):
    """`exp(logit_scale)` times the cosine of image and prompt."""

    label = "PickScore"

    def scale(self, parameters) -> Float[Array, ""]:
        return jnp.exp(parameters["logit_scale"])
