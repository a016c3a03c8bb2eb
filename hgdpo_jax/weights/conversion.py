"""Parameter trees and the same parameters under PyTorch's names and in PyTorch's layout.

Modules are named as their PyTorch originals, so a parameter's path, joined by dots, is its key in a file but for the
last word, and only kernels change their layout: linear layers are transposed, convolutions go from OIHW to HWIO.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.tensor_files import release

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

_WEIGHTS = ("kernel", "scale", "embedding")

# The autoencoder's attention in files of before diffusers 0.18, and in LDM's terms after conversion.
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def to_tree(
    tensors: Mapping[str, np.ndarray],
    template: Mapping[str, Any],
    where: str,
    dtype: str = "float32",
    place: Callable[[np.ndarray], Any] = lambda array: array,
) -> dict:
    """Parameter tree shaped as `template` (anything with `.shape` at its leaves), in `dtype`.

    Tensors are converted one by one and handed to `place`, whose result becomes the leaf: so there need never be a
    second copy of the whole. `where` names the source in messages. Raises UserError unless every tensor finds a place
    and every place a tensor of the right shape; only `position_ids`, which hold no weights, are passed over.
    """
    left = {_current_name(name): array for name, array in tensors.items() if not name.endswith("position_ids")}
    places = dict(_leaves(template))
    keys = {path: _key(path) for path in places}
    missing = sorted(set(keys.values()) - set(left))
    if missing:
        raise UserError(f"{where} lacks {some(missing)}: expected all weights of the model that its config describes")
    unknown = sorted(set(left) - set(keys.values()))
    if unknown:
        raise UserError(f"{where} has {some(unknown)}, which the model that its config describes does not have")
    tree: dict = {}
    for path, leaf in places.items():
        array, expected = left.pop(keys[path]), _pytorch_shape(path, leaf.shape)
        if array.shape == (*expected, 1, 1):
            # A linear layer stored as a 1x1 convolution.
            array = array[:, :, 0, 0]
        if array.shape != expected:
            raise UserError(f"{where} has {keys[path]} of shape {list(array.shape)}, expected {list(expected)}")
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        # A copy, whatever the type; turned by whoever takes it, as XLA does this many times as fast as NumPy.
        node[path[-1]] = place(_to_flax(path, array.astype(DTYPES[dtype], order="C")))
        # Else the file would lie in memory beside what was made of it.
        release(array)
    return tree


def from_tree(tree: Mapping[str, Any], dtype: str = "float32") -> dict[str, np.ndarray]:
    """The inverse of `to_tree`: PyTorch's names and layout, in `dtype`."""
    return {
        _key(path): _to_pytorch(path, np.asarray(array)).astype(DTYPES[dtype], order="C")
        for path, array in _leaves(tree)
    }


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _key(path: tuple[str, ...]) -> str:
    return ".".join((*path[:-1], "weight" if path[-1] in _WEIGHTS else path[-1]))


def _pytorch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return _to_pytorch(path, np.broadcast_to(np.float32(0), shape)).shape


def _to_pytorch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _to_flax(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _current_name(name: str) -> str:
    return _OLD_ATTENTION.sub(lambda match: f"{match[1]}.{_NEW_ATTENTION[match[2]]}.{match[3]}", name)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first `most` names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
