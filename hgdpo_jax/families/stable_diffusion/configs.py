"""Stable Diffusion 1.5 in the words of its files' configs: networks are as their classes' defaults describe them."""

from collections.abc import Mapping
from typing import Any

SCHEDULER: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {"unet": {}, "vae": {}, "text_encoder": {}, "scheduler": SCHEDULER}
