"""The head that makes a score of an embedding: linear layers one after another."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float


class ScoreHead(nn.Module):
    """Five linear layers and nothing between them, as in LAION's aesthetic predictor; in float32."""

    @nn.compact
    def __call__(self, embeddings: Float[Array, "n d"]) -> Float[Array, "n"]:
        x = embeddings
        # The numbers between are those of the dropouts that served training.
        for place, width in ((0, 1024), (2, 128), (4, 64), (6, 16), (7, 1)):
            # Of little cost; TPUs else multiply in bfloat16.
            x = nn.Dense(width, precision=jax.lax.Precision.HIGHEST, name=f"layers.{place}")(x)
        return x[:, 0]
