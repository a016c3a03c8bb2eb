"""A CLIP of two towers, such as PickScore, as a transformers folder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.errors import UserError, as_user_error
from hgdpo_jax.files import expanded, write_json
from hgdpo_jax.weights.clip_tokenizer import TOKENIZER_FILES, require_tokenizer
from hgdpo_jax.weights.folders import (
    copy_files,
    read_json,
    read_weights,
    write_weights,
)

# OpenAI's mean and standard deviation of images, transformers' default.
OPENAI_COLORS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

# transformers' defaults, ViT-B/32's: many of its versions leave out of a tower's config what equals them.
_DEFAULTS = {
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
    },
}

# Pillow's number for what images are resized by.
_BICUBIC = 3


@dataclasses.dataclass(frozen=True)
class CLIPFiles:
    """What a folder holds; tensors bear PyTorch's names and layout, `tokenizer` is the folder with its files."""

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    preprocessor: Mapping[str, Any]
    tokenizer: epath.Path


def read_folder(folder: epath.PathLike, processor: epath.PathLike = "") -> CLIPFiles:
    """Reads a transformers CLIPModel folder; raises UserError, naming what was expected, where a file is missing.

    The preprocessor's config and the tokenizer are those of the folder `processor`, where given.
    """
    folder = epath.Path(folder)
    processor = epath.Path(processor or folder)
    config = read_config(folder)
    return CLIPFiles(
        config=config,
        preprocessor=_read_preprocessor(processor, config["vision_config"]["image_size"]),
        tokenizer=require_tokenizer(processor),
        tensors=read_weights(folder, "model"),
    )


def read_config(folder: epath.Path) -> dict[str, Any]:
    """The config of a transformers CLIPModel folder; its towers get transformers' defaults for values that they lack.

    Raises UserError where it is the config of another model.
    """
    path = folder / "config.json"
    config = read_json(path)
    if missing := [name for name in (*_DEFAULTS, "projection_dim") if name not in config]:
        raise UserError(f"{path} has no {missing[0]}, expected a CLIP of two towers: give a folder of a CLIPModel")
    with as_user_error(f"{path} describes no CLIP"):
        return config | {name: defaults | config[name] for name, defaults in _DEFAULTS.items()}


def _read_preprocessor(folder: epath.Path, image_size: int) -> dict[str, Any]:
    """The config of the image processor; raises UserError where it prepares images otherwise than the scorers do.

    Whether it crops is not looked at: that is the scorer's framing.
    """
    path = folder / "processor_config.json"
    # transformers 5 writes the configs of image processor and tokenizer into one file, and prefers it to the other.
    found = read_json(path).get("image_processor") if path.is_file() else None
    if not isinstance(found, dict):
        path = folder / "preprocessor_config.json"
        found = read_json(path)
    # Before transformers 4.23 sizes were numbers.
    allowed = {
        "size": (image_size, {"shortest_edge": image_size}),
        "crop_size": (image_size, {"height": image_size, "width": image_size}),
        "resample": (_BICUBIC,),
        "do_resize": (True,),
        "do_rescale": (True,),
        "rescale_factor": (1 / 255,),
        "do_normalize": (True,),
    }
    for name, values in allowed.items():
        if (value := found.get(name, values[0])) not in values:
            raise UserError(f"{path} has {name} {value}, expected {values[0]}: give the processor of a CLIP")
    return OPENAI_COLORS | found


def write_folder(folder: epath.PathLike, files: CLIPFiles, storage: str = "float16") -> None:
    """Writes a folder that transformers' `CLIPModel`, `CLIPProcessor` and `CLIPTokenizer` load, and `read_folder`.

    `storage` is "float16" or "float32". The tokenizer's files are copied. config.json comes last.
    """
    folder = expanded(folder)
    copy_files(files.tokenizer, folder, TOKENIZER_FILES)
    # One that is there already would be read first.
    (folder / "processor_config.json").unlink(missing_ok=True)
    write_json(
        folder / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"} | dict(files.preprocessor)
    )
    write_weights(folder / "model.safetensors", dict(files.tensors), storage)
    # Unless told, transformers 5 computes in the type of the file.
    config = {"architectures": ["CLIPModel"], "model_type": "clip"} | dict(files.config) | {"dtype": "float32"}
    write_json(folder / "config.json", config)
