"""Named arrays in safetensors files, written completely or not at all, with a checksum."""

import hashlib
import json
import mmap
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.files import cached_copy, local_copy, similar, written_whole

_CHECKSUM = "sha256"
# Metadata whose names begin so mark a file of this project: other programs have a key "sha256" of their own.
_OWN = "hgdpo_jax"
OWN_METADATA = {f"{_OWN}_checksum": _CHECKSUM}

_TYPES: dict[str, type] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U32": np.uint32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_TYPE_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}


def save_tensors(path: epath.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None):
    """Writes a safetensors file, completely or not at all; equal content gives equal bytes.

    Arrays may be NumPy's, of any layout, or JAX's; "sha256" is added to `metadata`.
    """
    arrays = {name: np.asarray(tensors[name]) for name in sorted(tensors)}
    metadata = dict(metadata or {})
    metadata[_CHECKSUM] = _checksum(arrays, metadata)
    # safetensors' own writer keeps metadata in a hash map, whose order changes from one process to the next.
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPE_NAMES[array.dtype], "shape": array.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with written_whole(path) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for array in arrays.values():
            file.write(array.tobytes())


def load_tensors(path: epath.PathLike, foreign: bool = False) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file; the arrays are views of it, read from the disk as they are used.

    With `foreign` the file may be another program's: "sha256" in its metadata is checked only where the metadata names
    this project. Raises UserError where the file is missing, truncated, or differs from its checksum.
    """
    path = epath.Path(path)
    if not path.is_file():
        hint = f": did you mean {near}?" if (near := similar(path)) else ", expected a safetensors file"
        raise UserError(f"{path} does not exist{hint}")
    try:
        with local_copy(path) as local, safetensors.safe_open(local, framework="np") as file:
            metadata = dict(file.metadata() or {})
            # The library's own reader checks the header, but copies every tensor into memory.
            tensors = _views(local)
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a whole safetensors file ({reason}): fetch or make it again") from error
    except KeyError as error:
        raise UserError(f"{path} holds tensors of type {error}, expected one of {', '.join(_TYPES)}") from error
    is_own = not foreign or any(key.startswith(_OWN) for key in metadata)
    expected = metadata.pop(_CHECKSUM, None) if is_own else None
    if expected is not None and _checksum(tensors, metadata) != expected:
        raise UserError(f"{path} differs from the checksum it was written with: fetch or make it again")
    return tensors, metadata


def map_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Views of the tensors of a complete file, for reading few of its rows.

    Unlike `load_tensors` it reads no more than is used, and so does not check the checksum.
    """
    return _views(str(cached_copy(epath.Path(path))))


def _views(path: str) -> dict[str, np.ndarray]:
    """Views of the tensors of a valid file."""
    content: np.ndarray = np.asarray(np.memmap(path, np.uint8, "r"))
    start = 8 + int(content[:8].view("<u8")[0])
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    return {
        name: content[start:][slice(*entry["data_offsets"])].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


def release(array: np.ndarray) -> None:
    """Frees the memory of a view's part of its file; the view remains usable and is then read again."""
    owner: np.ndarray = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if isinstance(owner.base, mmap.mmap) and array.size:
        begin = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        start = begin - begin % mmap.PAGESIZE
        owner.base.madvise(mmap.MADV_DONTNEED, start, begin + array.nbytes - start)


def _checksum(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(json.dumps([name, _TYPE_NAMES[array.dtype], list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
