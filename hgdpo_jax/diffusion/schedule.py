"""The noise schedule, and the forward process that it defines."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hgdpo_jax.errors import UserError

SPACINGS = ("linspace", "leading", "trailing")
# What a network predicts: the noise, or the velocity of Salimans and Ho (2022), App. D.
PREDICTIONS = ("epsilon", "v_prediction")

# Stable Diffusion 1.x's own, in the words of a scheduler_config.json.
STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
}


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of the forward process `x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) noise`.

    `timestep_spacing` and `steps_offset` say which timesteps a sampler visits, `prediction_type` what networks predict
    that were trained with this schedule, all in the words of diffusers.
    """

    betas: Float[np.ndarray, " t"]
    alphas_cumprod: Float[np.ndarray, " t"]
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    prediction_type: str = "epsilon"

    @classmethod
    def scaled_linear(
        cls, start: float, end: float, steps: int, timestep_spacing: str = "linspace", steps_offset: int = 0
    ) -> Self:
        """Betas whose square roots are evenly spaced; Stable Diffusion has 0.00085 to 0.012 in 1000 steps."""
        betas = np.linspace(start**0.5, end**0.5, steps, dtype=np.float32) ** 2
        # PyTorch accumulates products in float64 too.
        alphas_cumprod = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
        return cls(betas, alphas_cumprod, timestep_spacing, steps_offset)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The schedule of a diffusers scheduler_config.json, whichever sampler that names.

        Raises UserError where the file is of another noise schedule, or of a model that predicts neither noise nor
        velocity.
        """
        for name, default, expected in (
            ("prediction_type", "epsilon", PREDICTIONS),
            ("beta_schedule", "linear", ("scaled_linear",)),
            ("trained_betas", None, (None,)),
            ("rescale_betas_zero_snr", False, (False, True)),
            ("timestep_spacing", "linspace", SPACINGS),
        ):
            if (given := config.get(name, default)) not in expected:
                raise UserError(
                    f"the scheduler's {name} is {given!r}, expected {' or '.join(map(repr, expected))}: "
                    "give a checkpoint of the Stable Diffusion 1.x family"
                )
        if missing := sorted({"beta_start", "beta_end"} - config.keys()):
            raise UserError(f"the scheduler's configuration lacks {' and '.join(missing)}: give a complete one")
        schedule = cls.scaled_linear(
            config["beta_start"],
            config["beta_end"],
            config.get("num_train_timesteps", 1000),
            config.get("timestep_spacing", "linspace"),
            config.get("steps_offset", 0),
        )
        schedule = dataclasses.replace(schedule, prediction_type=config.get("prediction_type", "epsilon"))
        if not config.get("rescale_betas_zero_snr", False):
            return schedule
        if schedule.prediction_type == "epsilon":
            raise UserError(
                "the scheduler's rescale_betas_zero_snr is True and its prediction_type 'epsilon', expected "
                "'v_prediction': the noise says nothing about the image where there is nothing else"
            )
        return schedule.with_zero_terminal_snr()

    def with_zero_terminal_snr(self) -> Self:
        """The schedule whose last step is noise alone (Lin et al. 2024, Algorithm 1)."""
        signal = np.sqrt(self.alphas_cumprod)
        signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
        betas = 1 - np.append(signal[0], signal[1:] / signal[:-1]) ** 2
        # Accumulated again, as diffusers does it: the little signal of the last steps is sensitive to rounding.
        alphas_cumprod = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
        return dataclasses.replace(self, betas=betas, alphas_cumprod=alphas_cumprod)

    def previous_alphas_cumprod(self, stride: int) -> Float[np.ndarray, " t"]:
        """`alphas_cumprod[t - stride]` of every t; 1, no noise at all, where that is before the first step."""
        stride = min(stride, len(self.alphas_cumprod))
        return np.concatenate([np.ones(stride, np.float32), self.alphas_cumprod[: len(self.alphas_cumprod) - stride]])


def add_noise(
    schedule: NoiseSchedule,
    clean: Float[Array, "n h w c"],
    noise: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """The forward process, with a timestep of its own for each image (HG-DPO, Sec. 3.2)."""
    signal = at_timesteps(np.sqrt(schedule.alphas_cumprod), timesteps)
    spread = at_timesteps(np.sqrt(1 - schedule.alphas_cumprod), timesteps)
    return signal * clean.astype(jnp.float32) + spread * noise.astype(jnp.float32)


def training_target(
    schedule: NoiseSchedule,
    clean: Float[Array, "n h w c"],
    noise: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """What a network should predict of `add_noise` with these arguments: the noise, or the velocity."""
    if schedule.prediction_type == "epsilon":
        return noise
    signal = at_timesteps(np.sqrt(schedule.alphas_cumprod), timesteps)
    spread = at_timesteps(np.sqrt(1 - schedule.alphas_cumprod), timesteps)
    return signal * noise.astype(jnp.float32) - spread * clean.astype(jnp.float32)


def predicted_image(
    schedule: NoiseSchedule,
    prediction: Float[Array, "n h w c"],
    latents: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """The clean latents that follow from a network's prediction for noisy ones, float32."""
    # Float64: 1 - x cancels all but four digits of float32 at small t.
    alphas_cumprod = schedule.alphas_cumprod.astype(np.float64)
    signal, spread = (at_timesteps(np.sqrt(share), timesteps) for share in (alphas_cumprod, 1 - alphas_cumprod))
    latents, prediction = latents.astype(jnp.float32), prediction.astype(jnp.float32)
    if schedule.prediction_type == "epsilon":
        return (latents - spread * prediction) / signal
    return signal * latents - spread * prediction


def predicted_noise(
    schedule: NoiseSchedule,
    prediction: Float[Array, "n h w c"],
    latents: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """The noise that follows from a network's prediction for noisy latents, float32."""
    prediction = prediction.astype(jnp.float32)
    if schedule.prediction_type == "epsilon":
        return prediction
    signal = at_timesteps(np.sqrt(schedule.alphas_cumprod), timesteps)
    spread = at_timesteps(np.sqrt(1 - schedule.alphas_cumprod), timesteps)
    return signal * prediction + spread * latents.astype(jnp.float32)


def at_timesteps(table: Float[np.ndarray, " t"], timesteps: Int[Array, " n"]) -> Float[jax.Array, "n 1 1 1"]:
    """The entries of a table over t for each image, float32, shaped to multiply latents."""
    return jnp.asarray(table, jnp.float32)[timesteps][:, None, None, None]
