"""A Stable Diffusion 1.x checkpoint: a diffusers folder, or one file."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.diffusion.schedule_settings import UNCHANGED, ScheduleSettings
from hgdpo_jax.errors import UserError, naming
from hgdpo_jax.families.stable_diffusion.configs import SCHEDULER, autoencoder_config
from hgdpo_jax.families.stable_diffusion.ldm_file import convert_checkpoint, convert_vae
from hgdpo_jax.families.stable_diffusion.single_file_schedule import scheduler_config
from hgdpo_jax.files import expanded, write_json, write_text
from hgdpo_jax.models.autoencoder import AutoencoderConfig
from hgdpo_jax.weights.clip_tokenizer import TOKENIZER_FILES, require_tokenizer
from hgdpo_jax.weights.folders import (
    content_fingerprint,
    copy_files,
    read_json,
    read_tensor_file,
    read_weights,
    write_weights,
)
from hgdpo_jax.weights.sources import resolve_source
from hgdpo_jax.weights.tensor_files import load_tensors

_WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}

# Where weights are stored in a folder.
WEIGHTS = tuple(f"{name}/{stem}" for name, stem in _WEIGHT_FILES.items())
_VAE_WEIGHTS = (_WEIGHT_FILES["vae"],)

# What diffusers' pipeline is made of, by library and class, as in a model_index.json.
_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    **dict.fromkeys(("feature_extractor", "image_encoder", "safety_checker"), (None, None)),
}

_TEXT_PREFIX = "text_model."
_SCHEDULER_FILE = "scheduler/scheduler_config.json"

# Folders that other architectures have; SD3 has both.
_FOREIGN = {"transformer": "an SD3 or Flux checkpoint", "text_encoder_2": "an SDXL checkpoint"}


@dataclasses.dataclass(frozen=True)
class StableDiffusionFiles:
    """What a checkpoint holds: `configs` of unet, vae, text_encoder, scheduler, and `tensors` of the first three.

    Tensors have PyTorch's names and layout; those of the text encoder have no prefix `text_model.`, as in the module.
    `tokenizer` is the folder with the tokenizer's files.
    """

    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, np.ndarray]]
    tokenizer: epath.Path


def read_checkpoint(
    source: epath.PathLike, tokenizer: str = "", vae: str = "", schedule: ScheduleSettings = UNCHANGED
) -> StableDiffusionFiles:
    """Reads a diffusers folder, packaged or not, or a single file; what else is given replaces its own.

    `tokenizer` is a folder or repository, which a single file needs; `vae` is a diffusers folder or a file. Raises
    UserError, naming what was expected, where something is missing, broken, or of another architecture.
    """
    path = resolve_source(source, WEIGHTS)
    folder: epath.Path | None
    if path.is_dir():
        files = read_folder(path)
        configs, tensors, folder = {**files.configs}, {**files.tensors}, files.tokenizer
    else:
        (configs, tensors), folder = _read_file(path, schedule), None
    _refuse_foreign(configs["unet"], str(path))
    if vae:
        configs["vae"], tensors["vae"] = _read_vae(vae, autoencoder_config(configs.get("vae", {})))
    elif "vae" not in tensors:
        raise UserError(f"{path} holds no VAE: set config.weights.vae to a VAE of the Stable Diffusion 1.x family")
    if tokenizer:
        folder = require_tokenizer(resolve_source(tokenizer, weights=()))
    elif folder is None:
        raise UserError(
            f"{path} holds no tokenizer: set config.weights.tokenizer to a folder with CLIP's vocab.json and merges.txt"
        )
    configs["scheduler"] = schedule.applied_to(configs["scheduler"])
    return StableDiffusionFiles(configs, tensors, folder)


def read_folder(folder: epath.PathLike) -> StableDiffusionFiles:
    """Reads a diffusers folder; raises UserError, naming what was expected, where a file is missing or broken."""
    folder = epath.Path(folder)
    configs = _folder_configs(folder)
    tokenizer = require_tokenizer(folder / "tokenizer")
    tensors = {name: read_weights(folder / name, stem) for name, stem in _WEIGHT_FILES.items()}
    # transformers 5 writes the text encoder without the prefix, versions before it with.
    tensors["text_encoder"] = {k.removeprefix(_TEXT_PREFIX): v for k, v in tensors["text_encoder"].items()}
    return StableDiffusionFiles(configs, tensors, tokenizer)


def read_configs(
    source: epath.PathLike, vae: str = "", schedule: ScheduleSettings = UNCHANGED
) -> dict[str, Mapping[str, Any]]:
    """The configs of a checkpoint, with what replaces its own; no weights are fetched from the hub.

    Raises UserError as `read_checkpoint` does.
    """
    path = resolve_source(source, weights=())
    configs = _folder_configs(path) if path.is_dir() else _read_file(path, schedule)[0]
    _refuse_foreign(configs["unet"], str(path))
    if vae:
        path = resolve_source(vae, weights=())
        is_folder = path.is_dir()
        configs["vae"] = read_json(path / "config.json") if is_folder else convert_vae(read_tensor_file(path), vae)[0]
    return configs | {"scheduler": schedule.applied_to(configs["scheduler"])}


def _read_file(path: epath.Path, schedule: ScheduleSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs and tensors of a checkpoint in one file."""
    tensors, metadata = _read_tensors(path)
    configs, converted = convert_checkpoint(tensors, str(path))
    scheduler = scheduler_config(path, tensors, metadata, schedule.prediction_type)
    return {**configs, "scheduler": scheduler}, {**converted}


def _read_tensors(path: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors of one file, and its metadata where it has any."""
    return load_tensors(path) if path.suffix == ".safetensors" else (read_tensor_file(path), {})


def _folder_configs(folder: epath.Path) -> dict[str, Any]:
    for name, kind in _FOREIGN.items():
        if (folder / name).is_dir():
            raise UserError(f"{folder} is {kind}: give a checkpoint of the Stable Diffusion 1.x family")
    configs = {name: read_json(folder / name / "config.json") for name in _WEIGHT_FILES}
    return configs | {"scheduler": read_json(folder / _SCHEDULER_FILE)}


def fingerprints(
    source: str, tokenizer: str = "", vae: str = "", schedule: ScheduleSettings = UNCHANGED
) -> dict[str, str]:
    """What decides the weights, by the names of settings, and the schedule of a single file that has its own."""
    path = resolve_source(source, WEIGHTS)
    found = {"base": content_fingerprint(path, WEIGHTS)}
    for name, replacement, weights in (("tokenizer", tokenizer, ()), ("vae", vae, _VAE_WEIGHTS)):
        if replacement:
            with naming(f"config.weights.{name}"):
                found[name] = content_fingerprint(resolve_source(replacement, weights), weights)
    return found if path.is_dir() else found | _schedule_fingerprint(path, schedule.prediction_type)


# Every stage asks, and pickled weights take a second to open.
@functools.cache
def _schedule_fingerprint(path: epath.Path, prediction_type: str) -> dict[str, str]:
    """Settings of a single file's noise schedule, or of the .yaml beside it, that differ from SD1.x's."""
    config = scheduler_config(path, *_read_tensors(path), prediction_type)
    return {f"base.{name}": str(value) for name, value in config.items() if value != SCHEDULER.get(name)}


def _read_vae(source: str, replaced: AutoencoderConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config and tensors of a VAE; raises UserError where its latents are not those of the one it replaces."""
    path = resolve_source(source, _VAE_WEIGHTS)
    if path.is_dir():
        config, tensors = read_json(path / "config.json"), read_weights(path, _WEIGHT_FILES["vae"])
    else:
        config, tensors = convert_vae(read_tensor_file(path), str(path))
    given = autoencoder_config(config)
    for name in ("latent_channels", "scaling_factor"):
        if (value := getattr(given, name)) != (expected := getattr(replaced, name)):
            raise UserError(
                f"the VAE {path} has {name} {value}, the checkpoint {expected}: "
                "give a VAE of the Stable Diffusion 1.x family"
            )
    return config, tensors


def _refuse_foreign(unet: Mapping[str, Any], where: str) -> None:
    """Raises UserError, which says what the checkpoint is, unless its U-Net has the inputs of SD1.x's."""
    if (channels := unet.get("in_channels", 4)) != 4:
        kind = "an inpainting checkpoint" if channels == 9 else "of another kind"
        raise UserError(f"{where} is {kind} ({channels} input channels, expected 4): give a text-to-image checkpoint")
    if unet.get("cross_attention_dim") == 1024:
        raise UserError(
            f"{where} is an SD2.x checkpoint (text width 1024): give one of the Stable Diffusion 1.x family"
        )


def write_folder(folder: epath.PathLike, files: StableDiffusionFiles, storage: str = "float16") -> None:
    """Writes a folder that `diffusers.StableDiffusionPipeline.from_pretrained` and `read_folder` load.

    `storage` is "float16" or "float32". The tokenizer's files are copied. model_index.json is written last, so a folder
    that has it is complete.
    """
    folder = expanded(folder)
    copy_files(files.tokenizer, folder / "tokenizer", TOKENIZER_FILES)
    for name, stem in _WEIGHT_FILES.items():
        prefix = _TEXT_PREFIX if name == "text_encoder" else ""
        tensors = {prefix + key: array for key, array in files.tensors[name].items()}
        write_weights(folder / name / f"{stem}.safetensors", tensors, storage)
        class_name, config = _CLASSES[name][1], files.configs[name]
        known = {"_class_name": class_name, **config}
        if name == "text_encoder":
            # By default transformers 5 computes in the stored type, and diffusers in float32: they would not fit.
            known = {"architectures": [class_name], "model_type": "clip_text_model", **config, "dtype": "float32"}
        write_json(folder / name / "config.json", known)
    scheduler = {"_class_name": "DPMSolverMultistepScheduler", **files.configs["scheduler"]}
    # diffusers writes -Infinity into it, which write_json would replace.
    write_text(folder / _SCHEDULER_FILE, json.dumps(scheduler, indent=2, sort_keys=True) + "\n")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.35.0",
            "requires_safety_checker": False,
            "scheduler": ("diffusers", scheduler["_class_name"]),
            **_CLASSES,
        },
    )
