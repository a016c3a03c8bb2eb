"""Settings that replace those of a checkpoint's noise schedule."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hgdpo_jax.diffusion.schedule import PREDICTIONS, SPACINGS
from hgdpo_jax.errors import UserError
from hgdpo_jax.settings import setting

# Settings whose names and values in a scheduler_config.json are others.
_SIGMAS = {"timesteps": False, "karras": True}
_TERMINAL_SNR = {"nonzero": False, "zero": True}
_IN_FILES = {"sigmas": ("use_karras_sigmas", _SIGMAS), "terminal_snr": ("rescale_betas_zero_snr", _TERMINAL_SNR)}


@dataclasses.dataclass(frozen=True)
class ScheduleSettings:
    """What replaces the noise schedule of the base's files, in drawing, training, and a base that is fine-tuned.

    Empty: as the files say. A single file says neither spacing nor offset nor sigmas: by default it has "linspace".
    """

    # Which timesteps the sampler visits: "linspace", "leading" or "trailing" (Lin et al. 2024, Table 2), as in
    # diffusers. Diffusers folders of Stable Diffusion 1.5 say "leading", with an offset of 1, for other samplers.
    timestep_spacing: str = setting("", among=("", *SPACINGS))
    # What "leading" adds to each timestep; -1: as the files say.
    steps_offset: int = setting(-1, least=-1, most=999)
    # The sampler's noise levels: "timesteps", those of its timesteps, or "karras" (Karras et al. 2022, Eq. 5).
    sigmas: str = setting("", among=("", *_SIGMAS))
    # What the denoiser predicts: "epsilon", the noise, or "v_prediction", the velocity (Salimans and Ho 2022, App. D).
    prediction_type: str = setting("", among=("", *PREDICTIONS))
    # Whether the last step is pure noise: "zero", betas rescaled (Lin et al. 2024, Algorithm 1), or "nonzero".
    terminal_snr: str = setting("", among=("", *_TERMINAL_SNR))

    def given(self) -> dict[str, Any]:
        """The settings that are not empty."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def applied_to(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A scheduler_config.json with these settings in place of its own.

        Raises UserError for an unknown value, and for a setting that others leave without effect.
        """
        given, changed = self.given(), dict(config)
        for field in dataclasses.fields(self):
            value, among = given.get(field.name, field.default), field.metadata["among"]
            if among and value not in among:
                raise UserError(f"config.schedule.{field.name} is {value!r}, expected {' or '.join(map(repr, among))}")
        for name, value in given.items():
            name_in_file, values = _IN_FILES.get(name, (name, {}))
            changed[name_in_file] = values.get(value, value)
        for name in given.keys() & {"timestep_spacing", "steps_offset"}:
            if changed.get("use_karras_sigmas"):
                raise UserError(
                    f"config.schedule.{name} is {given[name]!r}, but Karras sigmas decide the timesteps: "
                    f"set it to {getattr(UNCHANGED, name)!r}, or config.schedule.sigmas='timesteps'"
                )
        spacing = changed.get("timestep_spacing", "linspace")
        if "steps_offset" in given and spacing != "leading":
            raise UserError(
                f"config.schedule.steps_offset is {self.steps_offset}, but the spacing {spacing!r} has no offset: "
                "set it to -1, or config.schedule.timestep_spacing='leading'"
            )
        return changed


# All as the files say.
UNCHANGED = ScheduleSettings()
