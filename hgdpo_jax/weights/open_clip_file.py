"""A CLIP ViT-H/14 in one file under the names of open_clip, as HPSv2 is published; names become transformers'."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.weights.clip_files import OPENAI_COLORS, CLIPFiles
from hgdpo_jax.weights.folders import read_tensor_file
from hgdpo_jax.weights.shapes import Shapes

_IMAGE_HEAD, _TEXT_HEAD = 80, 64

# The causal mask, which some versions of open_clip store.
_UNUSED = "attn_mask"

# open_clip multiplies by these from the right, transformers has linear layers.
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}

# Replacements in open_clip's names, applied in this order.
_RENAMED = {
    r"^token_embedding\.": "text_model.embeddings.token_embedding.",
    r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
    r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
    r"^visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
    r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
    r"^ln_final\.": "text_model.final_layer_norm.",
    r"^visual\.ln_pre\.": "vision_model.pre_layrnorm.",
    r"^visual\.ln_post\.": "vision_model.post_layernorm.",
    r"^visual\.transformer\.resblocks\.": "vision_model.encoder.layers.",
    r"^transformer\.resblocks\.": "text_model.encoder.layers.",
    r"\.ln_([12])\.": r".layer_norm\1.",
    r"\.attn\.out_proj\.": ".self_attn.out_proj.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
}
_FUSED = re.compile(r"(.+)\.attn\.in_proj_(weight|bias)")


def read_file(path: epath.PathLike, tokenizer: epath.Path) -> CLIPFiles:
    """The files of a CLIP: those of the file, OpenAI's preprocessor, and the folder `tokenizer`.

    Raises UserError where the file is damaged or holds another model.
    """
    path = epath.Path(path)
    config, tensors = convert_checkpoint(read_tensor_file(path), str(path))
    # open_clip and HPSv2 keep OpenAI's.
    return CLIPFiles(config=config, tensors=tensors, preprocessor=OPENAI_COLORS, tokenizer=tokenizer)


def convert_checkpoint(tensors: Mapping[str, np.ndarray], where: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config, read off the shapes, and tensors under transformers' names.

    A name that has no counterpart is kept, so that it is reported as left over when the parameters are made. Raises
    UserError where the file holds no ViT-H/14 of open_clip.
    """
    renamed: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name == _UNUSED:
            continue
        if fused := _FUSED.fullmatch(name):
            for part, third in zip("qkv", np.array_split(array, 3), strict=True):
                renamed[_current_name(f"{fused[1]}.self_attn.{part}_proj.{fused[2]}")] = third
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = array.T
        else:
            renamed[_current_name(name)] = array
    return _config(Shapes(tensors, where, "a file of HPSv2, which is a ViT-H/14 of open_clip")), renamed


def _current_name(name: str) -> str:
    for pattern, new in _RENAMED.items():
        name = re.sub(pattern, new, name)
    return name


def _config(shapes: Shapes) -> dict[str, Any]:
    def tower(prefix: str, head: int) -> dict[str, Any]:
        sizes = shapes.clip_tower(f"{prefix}transformer.resblocks.", "mlp.c_fc.weight", head)
        return {**sizes, "hidden_act": "gelu"}

    patch = shapes.of("visual.conv1.weight")[-1]
    image_size = shapes.image_size(patch, shapes.of("visual.positional_embedding")[0])
    return {
        "text_config": tower("", _TEXT_HEAD)
        | {
            "vocab_size": shapes.of("token_embedding.weight")[0],
            "max_position_embeddings": shapes.of("positional_embedding")[0],
            # open_clip takes the largest id for the end token.
            "eos_token_id": 2,
        },
        "vision_config": tower("visual.", _IMAGE_HEAD) | {"patch_size": patch, "image_size": image_size},
        "projection_dim": shapes.of("text_projection")[1],
    }
