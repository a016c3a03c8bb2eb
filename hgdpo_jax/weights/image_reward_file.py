"""ImageReward in the one file in which it is published, `ImageReward.pt`."""

from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.weights.folders import read_tensor_file
from hgdpo_jax.weights.shapes import Shapes

# Heads for the losses of BLIP's own training, which the reward does not use.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")
_HEAD = 64
_TOWER = ("width", "intermediate", "layers", "heads")


def read_file(path: epath.PathLike) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Sizes of the vision transformer and of the text encoder, by the fields of their configs, and the tensors.

    Raises UserError where the file is damaged or holds another model.
    """
    path = epath.Path(path)
    tensors = {name: array for name, array in read_tensor_file(path).items() if not name.startswith(_UNUSED)}
    shapes = Shapes(tensors, str(path), "the file ImageReward.pt")
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    patch = shapes.of(f"{vision}patch_embed.proj.weight")[-1]
    vision_sizes = {
        **dict(zip(_TOWER, shapes.tower(f"{vision}blocks.", "mlp.fc1.weight", _HEAD), strict=True)),
        "patch_size": patch,
        "image_size": shapes.image_size(patch, shapes.of(f"{vision}pos_embed")[1]),
    }
    text_sizes = {
        **dict(zip(_TOWER, shapes.tower(f"{text}encoder.layer.", "intermediate.dense.weight", _HEAD), strict=True)),
        "vocabulary": shapes.of(f"{text}embeddings.word_embeddings.weight")[0],
        "positions": shapes.of(f"{text}embeddings.position_embeddings.weight")[0],
    }
    return vision_sizes, text_sizes, tensors
