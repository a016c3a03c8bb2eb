"""One step of the DDPM sampler (Ho et al. 2020, Eq. 7 and 11)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hgdpo_jax.diffusion.schedule import NoiseSchedule, at_timesteps, predicted_image


def step(
    schedule: NoiseSchedule,
    prediction: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
    latents: Float[Array, "n h w c"],
    noise: Float[Array, "n h w c"] | None = None,
    stride: int = 1,
) -> Float[Array, "n h w c"]:
    """Latents at t - stride from latents at t and a network's prediction, float32, with one t per image.

    The variance is diffusers' "fixed_small", without clipping. Where t - stride < 0 the result is the predicted clean
    image. Without `noise` it is the mean of the posterior, which suffices for differences of models that share noise.
    """
    # Float64: 1 - x cancels all but four digits of float32 at small t.
    alphas_cumprod = schedule.alphas_cumprod.astype(np.float64)
    previous = schedule.previous_alphas_cumprod(stride).astype(np.float64)
    beta = 1 - alphas_cumprod / previous
    clean_weight = np.sqrt(previous) * beta / (1 - alphas_cumprod)
    latents_weight = np.sqrt(1 - beta) * (1 - previous) / (1 - alphas_cumprod)

    def at(table):
        return at_timesteps(table, timesteps)

    clean = predicted_image(schedule, prediction, latents, timesteps)
    mean = at(clean_weight) * clean + at(latents_weight) * latents.astype(jnp.float32)
    if noise is None:
        return mean
    deviation = np.sqrt(np.maximum((1 - previous) / (1 - alphas_cumprod) * beta, 1e-20))
    return mean + at(np.where(previous < 1, deviation, 0)) * noise.astype(jnp.float32)
