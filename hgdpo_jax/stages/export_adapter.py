"""Writes the trained LoRA as files that diffusers and the kohya tools (A1111, ComfyUI) read."""

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.experiment.models import family_of, weight_fingerprints
from hgdpo_jax.training.best import BEST_FILE, best_adapter
from hgdpo_jax.weights import lora_files
from hgdpo_jax.weights.model_card import read_license
from hgdpo_jax.weights.sources import public_name

INPUTS = ("train_policy",)
NEEDS = ("weights.base",)


def settings(experiment: Experiment) -> dict:
    return {}


def plan(experiment: Experiment, run: StageRun) -> str:
    return "two files"


def run(experiment: Experiment, run: StageRun) -> None:
    family, weights = family_of(experiment), experiment.weights
    adapter, step = best_adapter(run.input("train_policy", BEST_FILE), family)
    metadata = {
        "base_model": public_name(weights.base),
        **{f"{name}_fingerprint": value for name, value in weight_fingerprints(experiment).items()},
        "config_fingerprint": run.fingerprint,
        "step": str(step),
        "recommended_scale": str(experiment.adapter.scale),
    }
    if (license := read_license(weights.base)) is not None:
        metadata["base_license"] = license
    for format, name in lora_files.EXPORTED.items():
        family.lora_names.save_adapter(adapter, run.folder / name, format=format, metadata=metadata)
