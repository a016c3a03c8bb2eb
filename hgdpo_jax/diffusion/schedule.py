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

# What `NoiseSchedule.from_dict` reads, some of it as fields of the same name.
_FIELDS = ("prediction_type", "timestep_spacing", "steps_offset", "use_karras_sigmas")
_READ = {
    *_FIELDS,
    *("beta_schedule", "beta_start", "beta_end", "num_train_timesteps"),
    *("trained_betas", "rescale_betas_zero_snr", "variance_type"),
}
# Settings of diffusers' DPM-Solver++ that are not implemented here, with the values that mean (2M) as it is here. Names
# of other samplers' solvers mean nothing to either.
_FIXED: Mapping[str, tuple] = {
    "solver_order": (2,),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    "algorithm_type": ("dpmsolver++", "deis", "data_prediction"),
    "final_sigmas_type": ("zero",),
    "thresholding": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "timestep_type": ("discrete",),
}
# Settings that serve one of those, that change nothing where the sampler ends without noise, or that belong to other
# samplers: whichever sampler a file names, images are drawn by DPM-Solver++.
_WITHOUT_EFFECT = {
    *("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type", "shift_terminal"),
    *("lower_order_final", "euler_at_final", "lambda_min_clipped"),
    *("skip_prk_steps", "set_alpha_to_one", "clip_sample", "clip_sample_range", "interpolation_type"),
    *("sigma_min", "sigma_max", "predict_x0", "disable_corrector", "solver_p", "predictor_order", "corrector_order"),
    *("tau_func", "original_inference_steps", "timestep_scaling", "noise_sampler_seed"),
}
_DISTILLED = ("LCMScheduler", "TCDScheduler")


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of the forward process `x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) noise`.

    `timestep_spacing` and `steps_offset`, or `use_karras_sigmas`, say which timesteps a sampler visits, and
    `prediction_type` what networks trained with this schedule predict, all in the terms of diffusers.
    """

    betas: Float[np.ndarray, " t"]
    alphas_cumprod: Float[np.ndarray, " t"]
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    use_karras_sigmas: bool = False

    @classmethod
    def scaled_linear(cls, start: float, end: float, steps: int, **options: Any) -> Self:
        """Betas whose square roots are evenly spaced, with further fields as `options`.

        Stable Diffusion has 0.00085 to 0.012 in 1000 steps.
        """
        betas = np.linspace(start**0.5, end**0.5, steps, dtype=np.float32) ** 2
        # PyTorch accumulates products in float64 too.
        alphas_cumprod = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
        return cls(betas, alphas_cumprod, **options)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The schedule of a diffusers scheduler_config.json, whichever sampler it names.

        Raises UserError for another kind of noise schedule, or for a model that predicts neither noise nor velocity.
        """
        for name, default, expected in (
            ("prediction_type", "epsilon", PREDICTIONS),
            ("beta_schedule", "linear", ("scaled_linear",)),
            ("trained_betas", None, (None,)),
            ("rescale_betas_zero_snr", False, (False, True)),
            ("timestep_spacing", "linspace", SPACINGS),
            # Networks that predict variances have more output channels.
            ("variance_type", None, (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")),
        ):
            if (given := config.get(name, default)) not in expected:
                settable = f", or set schedule.{name}" if name in ("prediction_type", "timestep_spacing") else ""
                raise UserError(
                    f"the scheduler's {name} is {given!r}, expected {' or '.join(map(repr, expected))}: "
                    f"give a checkpoint that was trained that way{settable}"
                )
        if missing := sorted({"beta_start", "beta_end"} - config.keys()):
            raise UserError(f"the scheduler's configuration lacks {' and '.join(missing)}: give a complete one")
        schedule = cls.scaled_linear(
            config["beta_start"],
            config["beta_end"],
            config.get("num_train_timesteps", 1000),
            **{name: config[name] for name in _FIELDS if name in config},
        )
        if not config.get("rescale_betas_zero_snr", False):
            return schedule
        if schedule.prediction_type == "epsilon":
            raise UserError(
                "the scheduler's rescale_betas_zero_snr is True and its prediction_type 'epsilon', expected "
                "'v_prediction', because at the last step predicted noise says nothing about the image: set "
                "config.schedule.prediction_type='v_prediction' or config.schedule.terminal_snr='nonzero'"
            )
        return schedule.with_zero_terminal_snr()

    def with_zero_terminal_snr(self) -> Self:
        """The schedule whose last step is pure noise (Lin et al. 2024, Algorithm 1)."""
        signal = np.sqrt(self.alphas_cumprod)
        signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
        betas = 1 - np.append(signal[0], signal[1:] / signal[:-1]) ** 2
        # Accumulated again, as in diffusers: the small signal of the last steps is sensitive to rounding.
        alphas_cumprod = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
        return dataclasses.replace(self, betas=betas, alphas_cumprod=alphas_cumprod)

    def __str__(self) -> str:
        """All that decides images and training, in words."""
        if self.use_karras_sigmas:
            visited = "Karras sigmas"
        else:
            # The other spacings ignore the offset.
            offset = f" with offset {self.steps_offset}" if self.timestep_spacing == "leading" else ""
            visited = f"{self.timestep_spacing} spacing{offset}"
        ending = ", zero terminal SNR" if self.alphas_cumprod[-1] == 0 else ""
        betas = f"betas {self.betas[0]:.3g} to {self.betas[-1]:.3g} in {len(self.betas):,} steps{ending}"
        return f"{betas}, {self.prediction_type}, {visited}"

    def previous_alphas_cumprod(self, stride: int) -> Float[np.ndarray, " t"]:
        """`alphas_cumprod[t - stride]` for every t; 1, no noise, before the first step."""
        stride = min(stride, len(self.alphas_cumprod))
        return np.concatenate([np.ones(stride, np.float32), self.alphas_cumprod[: len(self.alphas_cumprod) - stride]])


def unused_settings(config: Mapping[str, Any]) -> list[str]:
    """Settings of a scheduler_config.json, with their values, that are not implemented or not known.

    With these, diffusers' DPM-Solver++ could draw other images.
    """
    found = [
        f"{name} {value!r}"
        for name, own in _FIXED.items()
        if (value := config.get(name)) is not None and value not in own
    ]
    known = _READ | _WITHOUT_EFFECT | _FIXED.keys()
    found += [f"{name} {value!r}" for name, value in config.items() if name not in known and not name.startswith("_")]
    if config.get("_class_name") in _DISTILLED:
        found.append(f"{config['_class_name']}, of models that are distilled for a few steps without guidance")
    return found


def add_noise(
    schedule: NoiseSchedule,
    clean: Float[Array, "n h w c"],
    noise: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """The forward process, with one timestep per image (HG-DPO, Sec. 3.2)."""
    signal, sigma = _scales(schedule.alphas_cumprod, timesteps)
    return signal * clean.astype(jnp.float32) + sigma * noise.astype(jnp.float32)


def training_target(
    schedule: NoiseSchedule,
    clean: Float[Array, "n h w c"],
    noise: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """What a network should predict for `add_noise` of the same arguments: the noise, or the velocity."""
    if schedule.prediction_type == "epsilon":
        return noise
    signal, sigma = _scales(schedule.alphas_cumprod, timesteps)
    return signal * noise.astype(jnp.float32) - sigma * clean.astype(jnp.float32)


def predicted_image(
    schedule: NoiseSchedule,
    prediction: Float[Array, "n h w c"],
    latents: Float[Array, "n h w c"],
    timesteps: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """The clean latents that follow from a network's prediction for noisy ones, float32."""
    # Float64: 1 - x cancels all but four digits of float32 at small t.
    signal, sigma = _scales(schedule.alphas_cumprod.astype(np.float64), timesteps)
    return clean_latents(schedule, prediction, latents, signal, sigma)


def clean_latents(
    schedule: NoiseSchedule,
    prediction: Float[Array, "*shape"],
    latents: Float[Array, "*shape"],
    signal: Float[Array, "..."],
    sigma: Float[Array, "..."],
) -> Float[Array, "*shape"]:
    """The clean latents of noisy ones, `signal` times clean latents plus `sigma` times noise, float32."""
    latents, prediction = latents.astype(jnp.float32), prediction.astype(jnp.float32)
    if schedule.prediction_type == "epsilon":
        return (latents - sigma * prediction) / signal
    return signal * latents - sigma * prediction


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
    signal, sigma = _scales(schedule.alphas_cumprod, timesteps)
    return signal * prediction + sigma * latents.astype(jnp.float32)


def _scales(alphas_cumprod: np.ndarray, timesteps: Int[Array, " n"]) -> list[Float[jax.Array, "n 1 1 1"]]:
    """The scales of image and noise in noisy latents."""
    return [at_timesteps(np.sqrt(share), timesteps) for share in (alphas_cumprod, 1 - alphas_cumprod)]


def at_timesteps(table: Float[np.ndarray, " t"], timesteps: Int[Array, " n"]) -> Float[jax.Array, "n 1 1 1"]:
    """The entries of a table over t for each image, float32, shaped to multiply latents."""
    return jnp.asarray(table, jnp.float32)[timesteps][:, None, None, None]
