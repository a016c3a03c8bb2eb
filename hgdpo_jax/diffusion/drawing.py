"""Images, as latents, of a denoiser: DPM-Solver++ with guidance, and with latent adaptive normalisation."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hgdpo_jax.diffusion import dpm_solver
from hgdpo_jax.diffusion.guidance import guided
from hgdpo_jax.diffusion.latent_normalization import normalize
from hgdpo_jax.diffusion.schedule import NoiseSchedule

Denoiser = Callable[[Float[Array, "m h w c"], Int[Array, " m"], Any], Float[Array, "m h w c"]]


def draw(
    denoiser: Denoiser,
    initial_latents: Float[Array, "n h w c"],
    conditioning: Any,
    negative: Any,
    schedule: NoiseSchedule,
    *,
    steps: int,
    guidance: float,
    reference: Denoiser | None = None,
) -> Float[Array, "n h w c"]:
    """Clean latents by `denoiser(latents, timesteps, conditioning)`, led away from `negative`.

    With a `reference` it draws beside this one, and after each step gets its channels' statistics (HG-DPO, Eq. 7).
    """

    def predict(denoiser, latents, timestep):
        def conditioned(latents, conditioning):
            return denoiser(latents, jnp.full((latents.shape[0],), timestep), conditioning)

        return guided(conditioned, latents, conditioning, negative, guidance)

    if reference is None:
        return dpm_solver.sample(
            lambda latents, timestep: predict(denoiser, latents, timestep), initial_latents, schedule, steps
        )

    # Side by side along an axis of their own, so that a batch divided over devices stays where it is.
    def predict_both(latents, timestep):
        sides = predict(denoiser, latents[:, 0], timestep), predict(reference, latents[:, 1], timestep)
        return jnp.stack(sides, axis=1)

    def match_statistics(latents):
        return jnp.stack([normalize(latents[:, 0], latents[:, 1]), latents[:, 1]], axis=1)

    both = jnp.stack([initial_latents, initial_latents], axis=1)
    return dpm_solver.sample(predict_both, both, schedule, steps, match_statistics)[:, 0]
