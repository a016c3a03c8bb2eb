"""One step of the deterministic DDIM sampler (Song et al. 2021, Eq. 12 with sigma = 0)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hgdpo_jax.diffusion.schedule import NoiseSchedule, at_timesteps


def step(
    schedule: NoiseSchedule,
    predicted_noise: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
    latents: Float[Array, "n h w c"],
    stride: int = 1,
) -> Float[Array, "n h w c"]:
    """Latents of t to latents of t - stride, with a t of its own for each image, float32.

    Where t - stride < 0 the result is the predicted clean image, without clipping.
    """
    previous = schedule.previous_alphas_cumprod(stride)

    def at(table):
        return at_timesteps(table, timesteps)

    latents, predicted_noise = latents.astype(jnp.float32), predicted_noise.astype(jnp.float32)
    spread = at(np.sqrt(1 - schedule.alphas_cumprod))
    clean = (latents - spread * predicted_noise) / at(np.sqrt(schedule.alphas_cumprod))
    return at(np.sqrt(previous)) * clean + at(np.sqrt(1 - previous)) * predicted_noise
