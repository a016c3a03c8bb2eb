"""The loss of a denoiser."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def noise_prediction(predicted: Float[Array, "n h w c"], noise: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """Mean squared error of the predicted noise, one value per image (HG-DPO, Sec. 2: the SFT loss; a term of Eq. 3).

    For a network that predicts velocities, both arguments are velocities.
    """
    return jnp.mean((predicted.astype(jnp.float32) - noise.astype(jnp.float32)) ** 2, axis=(1, 2, 3))
