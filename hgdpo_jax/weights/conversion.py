"""Parameter trees and the same parameters under PyTorch's names and in PyTorch's layout.

Modules are named as their PyTorch originals, so a parameter's path, joined by dots, is its key in a file but for the
last word, and only kernels change their layout: linear layers are transposed, convolutions go from OIHW to HWIO.
"""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import KeyPath

from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import some
from hgdpo_jax.weights.tensor_files import release

# Axes of a convolution's kernel: HWIO to OIHW, and back.
_TO_PYTORCH, _TO_FLAX = (3, 2, 0, 1), (2, 3, 1, 0)

_WEIGHTS = ("kernel", "scale", "embedding")

_SHAPES_ONLY = contextvars.ContextVar("shapes_only", default=False)

# The autoencoder's attention in files from before diffusers 0.18, and of LDM after conversion.
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Within it `to_tree` checks names and shapes, and gives shapes in place of arrays: no content is read.

    So whatever loads weights also serves to check them before hours of work start.
    """
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


def to_tree(
    tensors: Mapping[str, np.ndarray],
    template: Mapping[str, Any],
    where: str,
    dtype: str = "float32",
    place: Callable[[np.ndarray], Any] = lambda array: array,
) -> dict:
    """Parameter tree shaped as `template` (anything with `.shape` at its leaves), in `dtype`.

    Tensors are converted one by one and passed to `place`, whose result becomes the leaf: this avoids a second copy of
    all weights. `where` names the source in messages. Raises UserError unless every tensor has a place and every place
    a tensor of the right shape; only `position_ids`, which are no weights, are ignored.
    """
    left = {
        _OLD_ATTENTION.sub(lambda match: f"{match[1]}.{_NEW_ATTENTION[match[2]]}.{match[3]}", name): array
        for name, array in tensors.items()
        if not name.endswith("position_ids")
    }
    keys = {_key(path) for path, _ in jax.tree.leaves_with_path(template)}
    if missing := sorted(keys - set(left)):
        raise UserError(f"{where} lacks {some(missing)}: expected all weights of the model that its config describes")
    if unknown := sorted(set(left) - keys):
        raise UserError(
            f"{where} has {some(unknown)}, which the model that its config describes does not have: give weights "
            "and config of one model"
        )

    def convert(path: KeyPath, leaf: Any) -> Any:
        array = left.pop(_key(path))
        # The shape in PyTorch's layout.
        expected = _transposed(path, np.broadcast_to(np.float32(0), leaf.shape), _TO_PYTORCH).shape
        if array.shape == (*expected, 1, 1):
            # A linear layer stored as a 1x1 convolution.
            array = array[:, :, 0, 0]
        if array.shape != expected:
            raise UserError(
                f"{where} has {_key(path)} of shape {list(array.shape)}, expected {list(expected)}: give weights and "
                "config of one model"
            )
        if _SHAPES_ONLY.get():
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        # A copy, whatever the type. Its transposed view is copied by `place`: XLA does so many times as fast as NumPy.
        placed = place(_transposed(path, array.astype(dtype, order="C"), _TO_FLAX))
        # Otherwise the file would stay in memory beside the parameters.
        release(array)
        return placed

    return jax.tree.map_with_path(convert, template)


def from_tree(tree: Mapping[str, Any], dtype: str = "float32") -> dict[str, np.ndarray]:
    """The inverse of `to_tree`: PyTorch's names and layout, in `dtype`."""
    return {
        _key(path): _transposed(path, np.asarray(array), _TO_PYTORCH).astype(dtype, order="C")
        for path, array in jax.tree.leaves_with_path(tree)
    }


def _key(path: KeyPath) -> str:
    *modules, last = (entry.key for entry in path)
    return ".".join([*modules, "weight" if last in _WEIGHTS else last])


def _transposed(path: KeyPath, array: np.ndarray, of_convolution: tuple[int, ...]) -> np.ndarray:
    if path[-1].key != "kernel":
        return array
    return array.transpose(of_convolution) if array.ndim == 4 else array.T
