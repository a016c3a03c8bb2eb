"""A CLIP ViT-H/14 in one file under the names of open_clip, as HPSv2 is published; names become transformers'."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.clip_files import OPENAI_COLORS, CLIPFiles
from hgdpo_jax.weights.folders import read_tensor_file

# Widths of attention heads, which no shape tells.
_IMAGE_HEAD, _TEXT_HEAD = 80, 64

# The causal mask, which some versions of open_clip store.
_UNUSED = "attn_mask"

_NAMES = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
}
# These multiply from the right, where transformers has linear layers.
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}

# Applied one after the other.
_PARTS = (
    (re.compile(r"^ln_final\."), "text_model.final_layer_norm."),
    (re.compile(r"^visual\.ln_pre\."), "vision_model.pre_layrnorm."),
    (re.compile(r"^visual\.ln_post\."), "vision_model.post_layernorm."),
    (re.compile(r"^visual\.transformer\.resblocks\."), "vision_model.encoder.layers."),
    (re.compile(r"^transformer\.resblocks\."), "text_model.encoder.layers."),
    (re.compile(r"\.ln_([12])\."), r".layer_norm\1."),
    (re.compile(r"\.attn\.out_proj\."), ".self_attn.out_proj."),
    (re.compile(r"\.mlp\.c_fc\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.c_proj\."), ".mlp.fc2."),
)
_FUSED = re.compile(r"(.+)\.attn\.in_proj_(weight|bias)")


def read_file(path: epath.PathLike, tokenizer: epath.Path) -> CLIPFiles:
    """Reads a file, and has OpenAI's preprocessor and the folder `tokenizer` beside it, as if it were a folder.

    Raises UserError where the file is damaged or holds another model.
    """
    path = epath.Path(path)
    config, tensors = convert_checkpoint(read_tensor_file(path), str(path))
    # open_clip and HPSv2 keep OpenAI's.
    return CLIPFiles(config=config, tensors=tensors, preprocessor=OPENAI_COLORS, tokenizer=tokenizer)


def convert_checkpoint(tensors: Mapping[str, np.ndarray], where: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config, read off the shapes, and tensors under transformers' names.

    A name that has no counterpart stays as it is, and so is named as left over when the parameters are made. Raises
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
    return _config(tensors, where), renamed


def _current_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    for pattern, new in _PARTS:
        name = pattern.sub(new, name)
    return name


def _config(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"{where} has no {name}: expected a file of HPSv2, which is a ViT-H/14 of open_clip")
        return tensors[name].shape

    def tower(prefix: str, head: int) -> dict[str, Any]:
        blocks = f"{prefix}transformer.resblocks."
        intermediate, width = shape(f"{blocks}0.mlp.c_fc.weight")
        if width % head:
            raise UserError(f"{where} has {blocks}* of width {width}, expected a ViT-H/14, whose heads have {head}")
        layers = {name.removeprefix(blocks).split(".")[0] for name in tensors if name.startswith(blocks)}
        return {
            "hidden_size": width,
            "intermediate_size": intermediate,
            "num_hidden_layers": len(layers),
            "num_attention_heads": width // head,
            "hidden_act": "gelu",
        }

    patch = shape("visual.conv1.weight")[-1]
    # One place is the class token's.
    side = math.isqrt(shape("visual.positional_embedding")[0] - 1)
    return {
        "text_config": tower("", _TEXT_HEAD)
        | {
            "vocab_size": shape("token_embedding.weight")[0],
            "max_position_embeddings": shape("positional_embedding")[0],
            # open_clip takes the largest id for the end token.
            "eos_token_id": 2,
        },
        "vision_config": tower("visual.", _IMAGE_HEAD) | {"patch_size": patch, "image_size": patch * side},
        "projection_dim": shape("text_projection")[1],
    }
