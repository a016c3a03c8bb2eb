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
    path: epath.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], prediction_type: str = ""
) -> dict[str, Any]:
    """The scheduler's configuration of a file with such tensors and metadata; by default SD1.x's.

    Metadata is that of ModelSpec and of kohya's trainers. A NAME.yaml beside NAME.safetensors, as web interfaces read
    it, overrides the file, and `prediction_type`, where given, overrides both. Raises UserError where the file
    contradicts itself or names an unknown prediction.
    """
    described = path.with_suffix(".yaml")
    text = described.read_text() if described.is_file() else ""
    config: dict[str, Any] = dict(SCHEDULER)
    for field, name in _FIELDS.items():
        if value := _yaml_value(name, text, r"\d[\d.e-]*"):
            config[field] = type(config[field])(float(value))
    value = _yaml_value("parameterization", text)
    said = {described.name: value} if value else _predictions_of(tensors, metadata)
    said = {"schedule.prediction_type": prediction_type} if prediction_type else said
    prediction, *others = {_PREDICTIONS.get(value.lower(), value) for value in said.values()} or {"epsilon"}
    if others or prediction not in _PREDICTIONS.values():
        sources = " and ".join(f"{value!r} ({source})" for source, value in said.items())
        raise UserError(
            f"{path} should predict {sources}, expected "
            "'epsilon' or 'v': set config.schedule.prediction_type to 'epsilon' or 'v_prediction', or write which into "
            f'{described.name} beside it, as parameterization: "v" or "eps"'
        )
    config["prediction_type"] = prediction
    stored = tensors.get("alphas_cumprod")
    marked = "ztsnr" in tensors or _is_true(metadata, "ss_zero_terminal_snr")
    # Other programs, too, read this mark only in checkpoints that predict velocities.
    if prediction == "v_prediction" and (marked or (stored is not None and stored.flat[-1] < 1e-6)):
        config["rescale_betas_zero_snr"] = True
    if stored is not None:
        _require_schedule(path, stored, config)
    return config


def _predictions_of(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file says that it predicts, by where it says so."""
    said = {}
    if value := metadata.get("modelspec.prediction_type"):
        said["modelspec.prediction_type"] = value
    if metadata.get("modelspec.architecture", "").partition("/")[0].endswith("-v"):
        said["modelspec.architecture"] = "v"
    if _is_true(metadata, "ss_v_parameterization"):
        said["ss_v_parameterization"] = "v"
    if "v_pred" in tensors:
        said["the tensor v_pred"] = "v"
    return said


def _yaml_value(name: str, text: str, pattern: str = r"\w+") -> str | None:
    """A plain value of a YAML file of LDM, whose names occur once; None where there is none."""
    match = re.search(rf"^\s*{name}\s*:\s*[\"']?({pattern})", text, re.MULTILINE)
    return match[1] if match else None


def _is_true(metadata: Mapping[str, str], name: str) -> bool:
    return metadata.get(name, "").lower() == "true"


def _require_schedule(path: epath.Path, stored: np.ndarray, config: Mapping[str, Any]) -> None:
    """Raises UserError unless the file's alphas_cumprod is that of its configuration."""
    expected = NoiseSchedule.from_dict(config).alphas_cumprod
    # A hundredth: tables were also stored in half precision.
    if stored.shape == expected.shape and np.abs(stored - expected).max() < 0.01:
        return
    raise UserError(
        f"{path} was trained with another noise schedule: its alphas_cumprod has {stored.size} steps down to "
        f"{stored.flat[-1]:.2g}, expected {len(expected)} down to {expected[-1]:.2g}; say it in "
        f"{path.with_suffix('.yaml').name} beside it (linear_start, linear_end, timesteps)"
    )
