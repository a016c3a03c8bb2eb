"""The head that makes a score of an embedding: linear layers one after another."""

import flax.linen as nn
from jaxtyping import Array, Float

from hgdpo_jax.models.precision import precise


class ScoreHead(nn.Module):
    """Five linear layers and nothing between them, as in LAION's aesthetic predictor; in float32."""

    @precise
    @nn.compact
    def __call__(self, embeddings: Float[Array, "n d"]) -> Float[Array, "n"]:
        x = embeddings
        # The numbers between are those of the dropouts that served training.
        for place, width in ((0, 1024), (2, 128), (4, 64), (6, 16), (7, 1)):
            x = nn.Dense(width, name=f"layers.{place}")(x)
        return x[:, 0]
