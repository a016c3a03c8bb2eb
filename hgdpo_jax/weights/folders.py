"""What the folders of diffusers and transformers have in common: JSON files and weight files."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.files import checksum, leads_out
from hgdpo_jax.texts import some
from hgdpo_jax.weights.pickled_files import load_pickled
from hgdpo_jax.weights.tensor_files import OWN_METADATA, load_tensors, save_tensors

# The weights of a transformers folder, as `weight_file_names` takes them.
MODEL = ("model",)

# Suffixes of files that PyTorch pickled.
PICKLED = (".bin", ".ckpt", ".pt", ".pth")


def content_fingerprint(source: epath.PathLike, weights: Sequence[str] = MODEL) -> str:
    """SHA-256, in hexadecimal, of a file, or of what is read from a folder: configs, vocabularies and `weights`.

    `weights` are places such as "model" or "vae/diffusion_pytorch_model". Model cards, pictures, and weights in other
    formats, which other programs may fetch into the hub's cache, do not count.
    """
    source = epath.Path(source)
    if not source.is_dir():
        return remembered(_checksum(source), source, {source.name: _checksum(source)})
    # Both layouts are at most one folder deep, and epath has no recursive search.
    paths = {path for pattern in ("*", "*/*") for path in source.glob(pattern) if path.suffix in (".json", ".txt")}
    for folder, _, stem in (place.rpartition("/") for place in weights):
        if file := find_weights(source / folder, stem):
            # Missing shards are reported when the weights are read.
            shards = set(_places(file).values()) if file.suffix == ".json" else ()
            paths |= {file, *(path for name in shards if (path := file.parent / name).is_file())}
    listed = {name: _checksum(path) for name, path in sorted((str(path.relative_to(source)), path) for path in paths)}
    lines = "".join(f"{name}\0{found}\n" for name, found in listed.items())
    return remembered(hashlib.sha256(lines.encode()).hexdigest(), source, listed)


# Of each fingerprint that this process has made: its source, and the checksums of the files that it names.
_CONTENTS: dict[str, dict[str, Any]] = {}


def remembered(fingerprint: str, source: epath.Path, files: Mapping[str, str]) -> str:
    """The fingerprint; `contents` gives its source and files from now on, for messages that say which one changed."""
    _CONTENTS[fingerprint] = {"source": str(source), "files": files}
    return fingerprint


def contents(fingerprint: str) -> dict[str, Any]:
    """Where what a fingerprint stands for was read, "source", and checksums by name, "files"; {} if it is unknown."""
    return _CONTENTS.get(fingerprint, {})


def _checksum(path: epath.Path) -> str:
    stat = path.stat()
    return _checksum_of(path, stat.mtime, stat.length)


# Every stage asks for the checksums of gigabytes of weights.
@functools.cache
def _checksum_of(path: epath.Path, _mtime: float, _length: int) -> str:
    return checksum(path)


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """A JSON object; raises UserError where the file is missing or holds something else."""
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist, expected a file in the diffusers or transformers layout")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): fetch or make it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value


def weight_file_names(stem: str) -> list[str]:
    """The files that may hold the weights `stem`; the first that exists is read."""
    pickled = "pytorch_model" if stem == "model" else stem
    return [
        f"{stem}.safetensors",
        f"{stem}.safetensors.index.json",
        f"{stem}.fp16.safetensors",
        f"{stem}.safetensors.index.fp16.json",
        f"{pickled}.bin",
        f"{pickled}.fp16.bin",
    ]


def find_weights(folder: epath.Path, stem: str) -> epath.Path | None:
    """The file that `stem` is read from, which may be the index of several; None where there is none."""
    return next((path for name in weight_file_names(stem) if (path := folder / name).is_file()), None)


def read_weights(folder: epath.Path, stem: str) -> dict[str, np.ndarray]:
    """Tensors of `stem` in a folder: one file or shards, full or half precision; safetensors before pickled files.

    Raises UserError where there are none.
    """
    path = find_weights(folder, stem)
    if path is None:
        raise UserError(f"{folder} holds no weights, expected one of {', '.join(weight_file_names(stem))}")
    return _read_shards(path) if path.suffix == ".json" else read_tensor_file(path)


def read_tensor_file(path: epath.Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file, or of a file that PyTorch pickled; raises UserError for any other."""
    if path.suffix in PICKLED:
        return load_pickled(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is no file of weights, expected .safetensors or {', '.join(PICKLED)}")
    return load_tensors(path, foreign=True)[0]


def _places(index: epath.Path) -> dict[str, str]:
    """The file of each tensor that an index lists; raises UserError where one is not beside the index."""
    places = read_json(index).get("weight_map", {})
    names = list(places.values()) if isinstance(places, dict) else [None]
    if wrong := [name for name in names if not isinstance(name, str) or leads_out(name)]:
        raise UserError(f"{index} names {wrong[0]!r} as a file of weights, expected one beside it: fetch it again")
    return places


def _read_shards(index: epath.Path) -> dict[str, np.ndarray]:
    """Tensors of all files that an index lists; raises UserError where a file does not hold what the index says."""
    places = _places(index)
    shards = {name: read_tensor_file(index.parent / name) for name in sorted(set(places.values()))}
    found = {key: name for name, tensors in shards.items() for key in tensors}
    if wrong := sorted(key for key in found.keys() | places.keys() if found.get(key) != places.get(key)):
        raise UserError(f"{index} and its files differ in where {some(wrong)} lies: fetch them again")
    return {key: array for tensors in shards.values() for key, array in tensors.items()}


def write_weights(path: epath.Path, tensors: dict[str, np.ndarray], storage: str) -> None:
    """Writes tensors as float32 or float16, whichever `storage` names, marked as PyTorch's."""
    stored = {name: array.astype(storage) for name, array in tensors.items()}
    save_tensors(path, stored, {"format": "pt"} | OWN_METADATA)


def copy_files(source: epath.PathLike, target: epath.Path, names: Sequence[str]) -> None:
    """Copies those of `names` that `source` has, and removes the others, which would change what the copies mean."""
    source = epath.Path(source)
    target.mkdir(parents=True, exist_ok=True)
    for name in names if source != target else ():
        if (source / name).is_file():
            (source / name).copy(target / name, overwrite=True)
        else:
            (target / name).unlink(missing_ok=True)
