"""The loss of CLIP."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def contrastive(
    text_embeddings: Float[Array, "n d"], image_embeddings: Float[Array, "n d"], scale: Float[Array, ""] | float
) -> Float[Array, " n"]:
    """Cross entropy of finding each text's image and each image's text in the batch, averaged, one value per pair.

    The embeddings are L2-normalised; `scale` is exp(logit_scale) (Radford et al. 2021, Fig. 3).
    """
    logits = scale * jnp.matmul(
        text_embeddings.astype(jnp.float32), image_embeddings.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST
    )
    image_of_text, text_of_image = (jnp.diagonal(jax.nn.log_softmax(logits, axis)) for axis in (1, 0))
    return -(image_of_text + text_of_image) / 2
