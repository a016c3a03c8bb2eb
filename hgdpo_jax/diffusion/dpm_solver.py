"""The multistep sampler DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), as diffusers' DPMSolverMultistepScheduler."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hgdpo_jax.diffusion.schedule import NoiseSchedule, clean_latents
from hgdpo_jax.errors import UserError

# Incremented when the same settings draw other images.
REVISION = 1


def timesteps(schedule: NoiseSchedule, steps: int) -> Int[np.ndarray, " steps"]:
    """The timesteps that the sampler visits, falling; raises UserError where `steps` is out of range."""
    trained = len(schedule.betas)
    if not 1 <= steps < trained:
        raise UserError(f"{steps} sampling steps, expected 1 to {trained - 1}: set config.pool.steps within that")
    visited: np.ndarray
    if schedule.use_karras_sigmas:
        ratios = np.log(_noise_to_signal(schedule))
        visited = np.interp(np.log(_visited_ratios(schedule, steps)), ratios, np.arange(trained)).round()
    elif schedule.timestep_spacing == "linspace":
        visited = np.linspace(0, trained - 1, steps + 1).round()[:0:-1]
    elif schedule.timestep_spacing == "leading":
        visited = np.arange(steps, 0, -1) * (trained // (steps + 1)) + schedule.steps_offset
        # By one, as diffusers allows with all steps and the usual offset.
        if visited[0] > trained:
            raise UserError(
                f"with {steps} steps and an offset of {schedule.steps_offset}, sampling starts at timestep "
                f"{visited[0]}, expected at most {trained}: lower config.schedule.steps_offset or config.pool.steps"
            )
    else:
        visited = np.arange(trained, 0, -trained / steps).round() - 1
    return visited.astype(np.int32)


def sample(
    predict: Callable[[Float[Array, "*shape"], Int[Array, ""]], Float[Array, "*shape"]],
    initial_latents: Float[Array, "*shape"],
    schedule: NoiseSchedule,
    steps: int,
    after_step: Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]] | None = None,
) -> Float[Array, "*shape"]:
    """Clean latents from noise, float32, with `steps` calls of `predict(latents, timestep)`.

    `predict` returns the schedule's `prediction_type`; its calls share one trace, in a scan. Latents may have any
    shape: for latent adaptive normalisation (HG-DPO, Eq. 7) one array holds target and reference. `after_step` changes
    the latents after every step, including the last, but not the solver's memory of the previous prediction.
    """

    def advance(carry, step):
        latents, previous_clean = carry
        timestep, signal, sigma, keep, move, curve = step
        clean = clean_latents(schedule, predict(latents, timestep), latents, signal, sigma)
        latents = keep * latents + move * clean + curve * (clean - previous_clean)
        return (after_step(latents) if after_step else latents, clean), None

    initial_latents = initial_latents.astype(jnp.float32)
    xs = (jnp.asarray(timesteps(schedule, steps)), *map(jnp.asarray, _coefficients(schedule, steps)))
    (latents, _), _ = jax.lax.scan(advance, (initial_latents, jnp.zeros_like(initial_latents)), xs)
    return latents


def _coefficients(schedule: NoiseSchedule, steps: int) -> tuple[Float[np.ndarray, " steps"], ...]:
    """Signal and sigma of the latents at every step, and the weights that lead to the next ones, float32.

    `next = keep * latents + move * clean + curve * (clean - previous_clean)`, with the predicted clean image.
    """
    ratios = np.append(_visited_ratios(schedule, steps), 0.0)  # The sampler ends without noise.
    signal = 1 / np.sqrt(ratios**2 + 1)
    sigma = ratios * signal
    keep = sigma[1:] / sigma[:-1]
    move = signal[1:] * (1 - ratios[1:] / ratios[:-1])
    # The first step has no previous prediction; the last one, to infinite log-SNR, has no weight for it.
    curve = np.zeros(steps)
    widths = -np.diff(np.log(ratios[:-1]))
    curve[1:-1] = 0.5 * move[1:-1] * widths[1:] / widths[:-1]
    return tuple(array.astype(np.float32) for array in (signal[:-1], sigma[:-1], keep, move, curve))


def _noise_to_signal(schedule: NoiseSchedule) -> Float[np.ndarray, " t"]:
    """Standard deviation of the noise over the scale of the image, diffusers' sigma, at every trained step."""
    # Clipped as in diffusers, because the last step may have no signal.
    alphas_cumprod = np.maximum(schedule.alphas_cumprod.astype(np.float64), 2.0**-24)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def _visited_ratios(schedule: NoiseSchedule, steps: int) -> Float[np.ndarray, " steps"]:
    """The noise levels that the sampler visits, falling."""
    trained = _noise_to_signal(schedule)
    if schedule.use_karras_sigmas:
        # Karras et al. 2022, Eq. 5 with rho = 7.
        return np.linspace(trained[-1] ** (1 / 7), trained[0] ** (1 / 7), steps) ** 7
    # Interpolated, because an offset may lead past the last trained step.
    return np.interp(timesteps(schedule, steps), np.arange(len(trained)), trained)
