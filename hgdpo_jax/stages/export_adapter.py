"""Writes the trained LoRA as files that diffusers and the kohya tools (A1111, ComfyUI) read."""

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.experiment.models import base_fingerprints
from hgdpo_jax.families.stable_diffusion.files import read_license
from hgdpo_jax.training.best import BEST_FILE, best_adapter
from hgdpo_jax.weights import lora_files
from hgdpo_jax.weights.sources import public_name

INPUTS = ("train_policy",)


def settings(experiment: Experiment) -> dict:
    return {}


def plan(experiment: Experiment, run: StageRun) -> str:
    return "two files"


def run(experiment: Experiment, run: StageRun) -> None:
    adapter, step = best_adapter(run.input("train_policy", BEST_FILE))
    metadata = {
        "base_model": public_name(experiment.weights.base),
        **{
            f"{name.removeprefix('weights.')}_fingerprint": value
            for name, value in base_fingerprints(experiment).items()
            if name.startswith("weights.")
        },
        "config_fingerprint": run.fingerprint,
        "step": str(step),
        "recommended_scale": str(experiment.adapter.scale),
    }
    if (license := read_license(experiment.weights.base)) is not None:
        metadata["base_license"] = license
    for format, name in lora_files.EXPORTED.items():
        lora_files.save_adapter(adapter, run.folder / name, format=format, metadata=metadata)
