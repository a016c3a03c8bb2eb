"""HG-DPO in JAX: a text-to-image model's own images, ranked by a preference model, teach it to draw people better."""

import importlib
from typing import Any

# Loaded at first use, so that `python -m hgdpo_jax.main --help` does not wait for JAX.
_HOMES = {
    "load_config": "hgdpo_jax.config_files",
    "plan": "hgdpo_jax.planning",
    "run": "hgdpo_jax.runner",
    "StableDiffusion": "hgdpo_jax.families.stable_diffusion",
    "ScheduleSettings": "hgdpo_jax.diffusion.schedule_settings",
    "PickScore": "hgdpo_jax.scorers.pick_score",
    "ImageReward": "hgdpo_jax.scorers.image_reward",
    "CLIPScore": "hgdpo_jax.scorers.clip_score",
    "HPSv2": "hgdpo_jax.scorers.hps_v2",
    "Aesthetic": "hgdpo_jax.scorers.aesthetic",
    "load_adapter": "hgdpo_jax.families.stable_diffusion",
    "save_adapter": "hgdpo_jax.families.stable_diffusion",
}

__all__ = [*_HOMES, "losses"]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("hgdpo_jax.losses")
    if name in _HOMES:
        importlib.import_module("hgdpo_jax.compilation").leave_out_cuda()
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
