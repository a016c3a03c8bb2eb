"""What the folders of diffusers and transformers have in common: JSON files, weight files, tokenizer files."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.conversion import DTYPES
from hgdpo_jax.weights.tensor_files import load_tensors, save_tensors

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")

_PACKAGED = epath.Path(__file__).parent.parent / "toon" / "weights"
_PACKAGED_NAMES = {"toon": "base", "toon-scorer": "scorer", "toon-judge": "judge", "toon-oracle": "oracle"}

# What changes results: weights, configs, vocabularies; not model cards and sample sheets.
_CONTENT = (".safetensors", ".json", ".txt")


def resolve_source(source: epath.PathLike) -> epath.Path:
    """The folder that a source names: "toon", "toon-scorer", "toon-judge", "toon-oracle" lie in the package.

    Raises UserError, with what was looked for, where there is none.
    """
    if not str(source):
        raise UserError("no weights are given: set config.weights.base and config.weights.scorer to a folder")
    if str(source) in _PACKAGED_NAMES:
        folder = _PACKAGED / _PACKAGED_NAMES[str(source)]
        if not folder.is_dir():
            raise UserError(f"{source} should lie in {folder}, which does not exist: install the package again")
        return folder
    folder = epath.Path(source)
    if not folder.is_dir():
        raise UserError(
            f"{source} is not an existing folder, expected one in the diffusers or transformers layout, "
            f"or one of {', '.join(_PACKAGED_NAMES)}"
        )
    return folder


def content_fingerprint(folder: epath.PathLike) -> str:
    """SHA-256, in hexadecimal, of the weight, config and vocabulary files of a folder and their relative names."""
    folder, digest = epath.Path(folder), hashlib.sha256()
    # Both layouts are at most one folder deep, and epath has no recursive search.
    paths = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in _CONTENT]
    for name, path in sorted((str(path.relative_to(folder)), path) for path in paths):
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                content.update(block)
        digest.update(f"{name}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()


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


def write_json(path: epath.Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_weights(folder: epath.Path, stem: str) -> dict[str, np.ndarray]:
    """Tensors of `stem`.safetensors, else of `stem`.fp16.safetensors; raises UserError where both are missing."""
    names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]
    for name in names:
        if (folder / name).is_file():
            return load_tensors(folder / name)[0]
    pickled = " (pickled weights are not read: convert them)" if any(folder.glob("*.bin")) else ""
    raise UserError(f"{folder} holds no weights, expected {' or '.join(names)}{pickled}")


def write_weights(path: epath.Path, tensors: dict[str, np.ndarray], storage: str) -> None:
    """Writes tensors as float32 or float16, whichever `storage` names, marked as PyTorch's."""
    save_tensors(path, {name: array.astype(DTYPES[storage]) for name, array in tensors.items()}, {"format": "pt"})


def copy_files(source: epath.PathLike, target: epath.Path, names: Sequence[str]) -> None:
    """Copies those of `names` that `source` has."""
    source = epath.Path(source)
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file() and source != target:
            (source / name).copy(target / name, overwrite=True)


def require_tokenizer(folder: epath.Path) -> epath.Path:
    """The folder itself; raises UserError where it has no tokenizer files."""
    if not (folder / "tokenizer.json").is_file() and not (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    ):
        raise UserError(f"{folder} holds no tokenizer, expected vocab.json and merges.txt, or tokenizer.json")
    return folder
