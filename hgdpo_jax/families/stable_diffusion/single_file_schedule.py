"""What a checkpoint in one file says of its noise schedule, and of what its U-Net predicts."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.diffusion.schedule import NoiseSchedule
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion.configs import SCHEDULER

_PREDICTIONS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
}
# Fields of an LDM configuration, by their names in a scheduler_config.json.
_FIELDS = {"beta_start": "linear_start", "beta_end": "linear_end", "num_train_timesteps": "timesteps"}


def scheduler_config(
    path: epath.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, Any]:
    """The scheduler's configuration of a file with such tensors and metadata; what it does not say is SD1.x's.

    Metadata is that of ModelSpec and of kohya's trainers. A NAME.yaml beside NAME.safetensors, as web interfaces read
    it, goes before what the file says. Raises UserError where that is contradictory or not known.
    """
    described = path.with_suffix(".yaml")
    text = described.read_text() if described.is_file() else ""
    config: dict[str, Any] = dict(SCHEDULER)
    for field, name in _FIELDS.items():
        if value := _yaml_value(name, text, r"\d[\d.e-]*"):
            config[field] = type(config[field])(float(value))
    if value := _yaml_value("parameterization", text):
        said = {described.name: value}
    else:
        said = _predictions_of(tensors, metadata)
    meant = {_PREDICTIONS.get(value.lower(), value) for value in said.values()} or {"epsilon"}
    (prediction,) = meant if len(meant) == 1 else ("",)
    if prediction not in _PREDICTIONS.values():
        sources = " and ".join(f"{value!r} ({source})" for source, value in said.items())
        raise UserError(
            f"{path} should predict {sources}, expected "
            f"'epsilon' or 'v': write which into {described.name} beside it, as parameterization: \"v\" or \"eps\""
        )
    config["prediction_type"] = prediction
    marked = "ztsnr" in tensors or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    # Other programs, too, look at this mark in checkpoints of velocity alone.
    if prediction == "v_prediction" and (marked or _has_zero_terminal_snr(tensors)):
        config["rescale_betas_zero_snr"] = True
    _require_stored_schedule(path, tensors, config)
    return config


def _predictions_of(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file says that it predicts, by where it says so."""
    said = {name: metadata[name] for name in ("modelspec.prediction_type",) if metadata.get(name)}
    if metadata.get("modelspec.architecture", "").partition("/")[0].endswith("-v"):
        said["modelspec.architecture"] = "v"
    if metadata.get("ss_v_parameterization", "").lower() == "true":
        said["ss_v_parameterization"] = "v"
    if "v_pred" in tensors:
        said["the tensor v_pred"] = "v"
    return said


def _yaml_value(name: str, text: str, pattern: str = r"\w+") -> str | None:
    """A plain value of a YAML file of LDM, whose names occur once; None where there is none."""
    match = re.search(rf"^\s*{name}\s*:\s*[\"']?({pattern})", text, re.MULTILINE)
    return match[1] if match else None


def _has_zero_terminal_snr(tensors: Mapping[str, np.ndarray]) -> bool:
    return "alphas_cumprod" in tensors and float(tensors["alphas_cumprod"].flat[-1]) < 1e-6


def _require_stored_schedule(path: epath.Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Raises UserError where the file holds the table of another noise schedule than its configuration says."""
    stored = tensors.get("alphas_cumprod")
    expected = NoiseSchedule.from_dict(config).alphas_cumprod
    # A hundredth: tables were also stored in half precision.
    if stored is None or (stored.shape == expected.shape and np.abs(stored - expected).max() < 0.01):
        return
    raise UserError(
        f"{path} was trained with another noise schedule: its alphas_cumprod has {stored.size} steps down to "
        f"{stored.flat[-1]:.2g}, expected {len(expected)} down to {expected[-1]:.2g}; say it in "
        f"{path.with_suffix('.yaml').name} beside it (linear_start, linear_end, timesteps)"
    )
