"""A CLIP of two towers, such as PickScore, as a transformers folder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.weights.folders import (
    TOKENIZER_FILES,
    copy_files,
    read_json,
    read_weights,
    require_tokenizer,
    write_json,
    write_weights,
)
from hgdpo_jax.weights.sources import resolve_source


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
    return CLIPFiles(
        config=read_json(folder / "config.json"),
        preprocessor=read_json(processor / "preprocessor_config.json"),
        tokenizer=require_tokenizer(processor),
        tensors=read_weights(folder, "model"),
    )


def read_source(source: str, processor: str = "") -> CLIPFiles:
    """`read_folder` of what the two sources name; of `processor` no weights are fetched."""
    return read_folder(resolve_source(source), resolve_source(processor, weights=False) if processor else "")


def write_folder(folder: epath.PathLike, files: CLIPFiles, storage: str = "float16") -> None:
    """Writes a folder that transformers' `CLIPModel`, `CLIPProcessor` and `CLIPTokenizer` load, and `read_folder`.

    `storage` is "float16" or "float32". The tokenizer's files are copied. config.json comes last.
    """
    folder = epath.Path(folder)
    copy_files(files.tokenizer, folder, TOKENIZER_FILES)
    write_json(
        folder / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"} | dict(files.preprocessor)
    )
    write_weights(folder / "model.safetensors", dict(files.tensors), storage)
    # Unless told, transformers 5 computes in the type of the file.
    config = {"architectures": ["CLIPModel"], "model_type": "clip"} | dict(files.config) | {"dtype": "float32"}
    write_json(folder / "config.json", config)
