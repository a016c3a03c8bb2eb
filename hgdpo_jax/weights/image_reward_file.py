"""ImageReward in the one file in which it is published, `ImageReward.pt`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.folders import read_tensor_file

# Heads for losses of BLIP's own training, which no reward goes through.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")
# Width of an attention head in both towers, which no shape tells.
_HEAD = 64


def read_file(path: epath.PathLike) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Shapes of the vision transformer and of the text encoder, by the fields of their configs, and the tensors.

    Raises UserError where the file is damaged or holds another model.
    """
    path = epath.Path(path)
    tensors = {name: array for name, array in read_tensor_file(path).items() if not name.startswith(_UNUSED)}
    return _vision(tensors, str(path)), _text(tensors, str(path)), tensors


def _vision(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    prefix = "blip.visual_encoder."
    width, _, patch, _ = _shape(tensors, f"{prefix}patch_embed.proj.weight", where)
    # One place is the class token's.
    side = math.isqrt(_shape(tensors, f"{prefix}pos_embed", where)[1] - 1)
    return {
        "width": width,
        "intermediate": _shape(tensors, f"{prefix}blocks.0.mlp.fc1.weight", where)[0],
        "layers": _layers(tensors, f"{prefix}blocks."),
        "heads": _heads(width, where),
        "patch_size": patch,
        "image_size": patch * side,
    }


def _text(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    prefix = "blip.text_encoder."
    vocabulary, width = _shape(tensors, f"{prefix}embeddings.word_embeddings.weight", where)
    return {
        "vocabulary": vocabulary,
        "width": width,
        "intermediate": _shape(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight", where)[0],
        "layers": _layers(tensors, f"{prefix}encoder.layer."),
        "heads": _heads(width, where),
        "positions": _shape(tensors, f"{prefix}embeddings.position_embeddings.weight", where)[0],
    }


def _shape(tensors: Mapping[str, np.ndarray], name: str, where: str) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(f"{where} has no {name}: expected the file ImageReward.pt")
    return tensors[name].shape


def _layers(tensors: Mapping[str, np.ndarray], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _heads(width: int, where: str) -> int:
    if width % _HEAD:
        raise UserError(f"{where} has a tower of width {width}, expected one with heads of {_HEAD}, as ImageReward's")
    return width // _HEAD
