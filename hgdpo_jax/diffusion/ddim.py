"""One step of the deterministic DDIM sampler (Song et al. 2021, Eq. 12 with sigma = 0)."""

import numpy as np
from jaxtyping import Array, Float, Int

from hgdpo_jax.diffusion.schedule import NoiseSchedule, at_timesteps, predicted_image, predicted_noise


def step(
    schedule: NoiseSchedule,
    prediction: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
    latents: Float[Array, "n h w c"],
    stride: int = 1,
) -> Float[Array, "n h w c"]:
    """Latents of t to latents of t - stride, with a t of its own for each image, float32, from a network's prediction.

    Where t - stride < 0 the result is the predicted clean image, without clipping.
    """
    previous = schedule.previous_alphas_cumprod(stride)

    def at(table):
        return at_timesteps(table, timesteps)

    clean = predicted_image(schedule, prediction, latents, timesteps)
    noise = predicted_noise(schedule, prediction, latents, timesteps)
    return at(np.sqrt(previous)) * clean + at(np.sqrt(1 - previous)) * noise
