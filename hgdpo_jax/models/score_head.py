"""The head that turns an embedding into a score: consecutive linear layers."""

import flax.linen as nn
from jaxtyping import Array, Float

from hgdpo_jax.models.precision import precise


class ScoreHead(nn.Module):
    """Five linear layers without activations, as in LAION's aesthetic predictor, in float32."""

    @precise
    @nn.compact
    def __call__(self, embeddings: Float[Array, "n d"]) -> Float[Array, "n"]:
        x = embeddings
        # The missing numbers belong to dropouts, which only training needs.
        for place, width in ((0, 1024), (2, 128), (4, 64), (6, 16), (7, 1)):
            x = nn.Dense(width, name=f"layers.{place}")(x)
        return x[:, 0]
