"""Latent adaptive normalisation, which corrects the colour shift at inference time."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def normalize(target: Float[Array, "*n h w c"], reference: Float[Array, "*n h w c"]) -> Float[Array, "*n h w c"]:
    """The target latents, with the reference's mean and standard deviation per channel and image (HG-DPO, Eq. 7)."""
    space = (-3, -2)
    target_mean, reference_mean = (x.mean(space, keepdims=True) for x in (target, reference))
    target_deviation, reference_deviation = (x.std(space, keepdims=True) for x in (target, reference))
    # A constant channel cannot be scaled; it gets the reference's mean.
    scale = reference_deviation / jnp.maximum(target_deviation, jnp.finfo(jnp.float32).tiny)
    return (target - target_mean) * scale + reference_mean
