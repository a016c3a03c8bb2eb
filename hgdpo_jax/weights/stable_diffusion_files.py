"""A Stable Diffusion 1.x checkpoint as a diffusers folder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.weights.folders import (
    TOKENIZER_FILES,
    content_fingerprint,
    copy_files,
    read_json,
    read_weights,
    require_tokenizer,
    resolve_source,
    write_json,
    write_weights,
)

__all__ = ["StableDiffusionFiles", "content_fingerprint", "read_folder", "resolve_source", "write_folder"]

_WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}

# What diffusers and transformers need in a config.json to know the class.
_CLASSES: dict[str, dict[str, Any]] = {
    "unet": {"_class_name": "UNet2DConditionModel"},
    "vae": {"_class_name": "AutoencoderKL"},
    "text_encoder": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
    "scheduler": {"_class_name": "DPMSolverMultistepScheduler"},
}

_TEXT_PREFIX = "text_model."


@dataclasses.dataclass(frozen=True)
class StableDiffusionFiles:
    """What a folder holds: `configs` of unet, vae, text_encoder, scheduler, and `tensors` of the first three.

    Tensors bear PyTorch's names and layout; those of the text encoder are without the prefix `text_model.`, as in the
    module. `tokenizer` is the folder with the tokenizer's files.
    """

    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, np.ndarray]]
    tokenizer: epath.Path


def read_folder(folder: epath.PathLike) -> StableDiffusionFiles:
    """Reads a diffusers folder; raises UserError, naming what was expected, where a file is missing or broken."""
    folder = epath.Path(folder)
    configs = {name: read_json(folder / name / "config.json") for name in _WEIGHT_FILES}
    configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    tokenizer = require_tokenizer(folder / "tokenizer")
    tensors = {name: read_weights(folder / name, stem) for name, stem in _WEIGHT_FILES.items()}
    # transformers 5 writes the text encoder without the prefix, versions before it with.
    tensors["text_encoder"] = {k.removeprefix(_TEXT_PREFIX): v for k, v in tensors["text_encoder"].items()}
    return StableDiffusionFiles(configs, tensors, tokenizer)


def write_folder(folder: epath.PathLike, files: StableDiffusionFiles, storage: str = "float16") -> None:
    """Writes a folder that `diffusers.StableDiffusionPipeline.from_pretrained` and `read_folder` load.

    `storage` is "float16" or "float32". The tokenizer's files are copied. model_index.json comes last: a folder
    that has it is whole.
    """
    folder = epath.Path(folder)
    copy_files(files.tokenizer, folder / "tokenizer", TOKENIZER_FILES)
    for name, stem in _WEIGHT_FILES.items():
        prefix = _TEXT_PREFIX if name == "text_encoder" else ""
        tensors = {prefix + key: array for key, array in files.tensors[name].items()}
        write_weights(folder / name / f"{stem}.safetensors", tensors, storage)
        write_json(folder / name / "config.json", _config(files, name))
    scheduler = _config(files, "scheduler")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.35.0",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def _config(files: StableDiffusionFiles, name: str) -> dict[str, Any]:
    config = _CLASSES[name] | dict(files.configs[name])
    if name == "text_encoder":
        # Unless told, transformers 5 computes in the stored type and diffusers in float32: they would not fit.
        config["dtype"] = "float32"
    return config
