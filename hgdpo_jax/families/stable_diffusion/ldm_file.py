"""A Stable Diffusion 1.x checkpoint, or a VAE alone, in one file under the names of LDM, as on Civitai.

Names become those of diffusers and transformers. A name without a counterpart is kept, so that `to_tree` reports it as
unknown.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import some
from hgdpo_jax.weights.shapes import Shapes

# Every CLIP of the family has heads of 64.
_HEAD = 64

Tensors = dict[str, np.ndarray]

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}

# Tensors that no network reads: averaged copies of the weights, tables of the noise schedule, the VAE's discriminator,
# CLIP's projection into the space of images, token positions, and marks of what the U-Net predicts.
_UNUSED = re.compile(
    r"model_ema\..+|.+\.position_ids|betas|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights|logvar"
    r"|v_pred|ztsnr|(first_stage_model\.)?loss\..+|cond_stage_model\.(transformer\.)?(text_projection(\.weight)?|logit_scale)"
)

# Keys of other kinds of files.
_FOREIGN = {
    r"\.(lora_(up|down|A|B)|lora\.(up|down))\.|\.(hada|lokr)_": "a LoRA, which needs a base",
    r"^conditioner\.embedders\.": "an SDXL checkpoint",
    r"\bjoint_blocks\.": "an SD3 checkpoint",
    r"\bdouble_blocks\.": "a Flux checkpoint",
    r"^cond_stage_model\.model\.": "an SD2.x checkpoint",
}

_UNET_ENDS = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
_UNET_BLOCK = re.compile(r"(?:(in|out)put_blocks\.(\d+)|middle_block)\.(\d+)\.(.+)\.(weight|bias)")
_UNET_PARTS = {
    "in_layers.0": "resnets.{}.norm1",
    "in_layers.2": "resnets.{}.conv1",
    "emb_layers.1": "resnets.{}.time_emb_proj",
    "out_layers.0": "resnets.{}.norm2",
    "out_layers.3": "resnets.{}.conv2",
    "skip_connection": "resnets.{}.conv_shortcut",
    "op": "downsamplers.0.conv",
    "conv": "upsamplers.0.conv",
}
# These have the same names in both.
_UNET_ATTENTION = re.compile(r"norm|proj_in|proj_out|transformer_blocks\..+")

# Applied one after the other. Attention names of other converters are left to `conversion`.
_VAE_PARTS = {
    r"\.norm_out\.": ".conv_norm_out.",
    r"\.nin_shortcut\.": ".conv_shortcut.",
    r"\.block\.(\d+)\.": r".resnets.\1.",
    r"\.(down|up)sample\.": r".\1samplers.0.",
    r"\.down\.(\d+)\.": r".down_blocks.\1.",
    r"\.mid\.block_1\.": ".mid_block.resnets.0.",
    r"\.mid\.block_2\.": ".mid_block.resnets.1.",
    r"\.mid\.attn_1\.": ".mid_block.attentions.0.",
    r"\.attentions\.0\.norm\.": ".attentions.0.group_norm.",
    r"\.attentions\.0\.([qkv])\.": r".attentions.0.to_\1.",
    r"\.attentions\.0\.proj_out\.": ".attentions.0.to_out.0.",
}


def convert_checkpoint(
    tensors: Mapping[str, np.ndarray], where: str
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensors]]:
    """Configs of unet, text_encoder and, where the file has one, vae; and their tensors.

    Configs hold what shapes determine; the rest are the defaults of Stable Diffusion 1.x. Raises UserError, which says
    what the file is, for anything else.
    """
    _refuse_foreign(tensors, where)
    left = {name: array for name, array in tensors.items() if not _UNUSED.fullmatch(name)}
    parts: dict[str, Tensors] = {}
    for part, prefix in _PREFIXES.items():
        parts[part] = {name.removeprefix(prefix): left.pop(name) for name in list(left) if name.startswith(prefix)}
        if not parts[part] and part != "vae":
            raise UserError(f"{where} has no {prefix}*: expected a Stable Diffusion 1.x checkpoint in one file")
    if left:
        raise UserError(
            f"{where} has {some(sorted(left))}, which is not part of a Stable Diffusion 1.x checkpoint: give one "
            "of this family"
        )
    layers = _layers_per_block(parts["unet"])
    converted = {
        "unet": _rename(parts["unet"], lambda name: _unet_name(name, layers), where),
        "text_encoder": _rename(parts["text_encoder"], lambda name: name.removeprefix("text_model."), where),
    }
    text = _shapes(converted["text_encoder"], where)
    configs = {
        "unet": _unet_config(_shapes(converted["unet"], where), layers),
        "text_encoder": text.clip_tower("encoder.layers.", "mlp.fc1.weight", _HEAD)
        | {
            "vocab_size": text.of("embeddings.token_embedding.weight")[0],
            "max_position_embeddings": text.of("embeddings.position_embedding.weight")[0],
        },
    }
    if parts["vae"]:
        configs["vae"], converted["vae"] = convert_vae(parts["vae"], where)
    return configs, converted


def convert_vae(tensors: Mapping[str, np.ndarray], where: str) -> tuple[dict[str, Any], Tensors]:
    """Config and tensors of a VAE, with or without the prefix of a checkpoint, under names of LDM or diffusers."""
    _refuse_foreign(tensors, where)
    bare = {name.removeprefix(_PREFIXES["vae"]): tensors[name] for name in tensors if not _UNUSED.fullmatch(name)}
    levels = _count(bare, r"decoder\.up(?:_blocks)?\.(\d+)\.")
    converted = _rename(bare, lambda name: _vae_name(name, levels), where)
    shapes = _shapes(converted, where)
    config = {
        "block_out_channels": [shapes.of(f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(converted, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": shapes.of("post_quant_conv.weight")[0],
    }
    return config, converted


def _unet_config(shapes: Shapes, layers: int) -> dict[str, Any]:
    levels = range(_count(shapes.tensors, r"down_blocks\.(\d+)\."))

    def kinds(side: str) -> list[str]:
        attentive = [f"{side.lower()}_blocks.{i}.attentions.0.norm.weight" in shapes.tensors for i in levels]
        return [f"CrossAttn{side}Block2D" if attention else f"{side}Block2D" for attention in attentive]

    return {
        "in_channels": shapes.of("conv_in.weight")[1],
        "out_channels": shapes.of("conv_out.weight")[0],
        "block_out_channels": [shapes.of(f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in levels],
        "down_block_types": kinds("Down"),
        "up_block_types": kinds("Up"),
        "layers_per_block": layers,
        "cross_attention_dim": shapes.of("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")[1],
    }


def _layers_per_block(names: Iterable[str]) -> int:
    """ResNet blocks per level; blocks on the way down are numbered across levels, beginning with a convolution."""
    downsamplers = [int(match[1]) for name in names if (match := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))]
    return max(1, min(downsamplers, default=_count(names, r"input_blocks\.(\d+)\."))) - 1


def _unet_name(name: str, layers: int) -> str:
    for end, new in _UNET_ENDS.items():
        if name.startswith(end):
            return new + name.removeprefix(end)
    if not (match := _UNET_BLOCK.fullmatch(name)):
        return name
    way, number, place, part, kind = match.groups()
    if way:
        level, layer = divmod(int(number) - (way == "in"), layers + 1)
        block = f"{'down' if way == 'in' else 'up'}_blocks.{level}"
    else:
        # Two ResNet blocks around an attention.
        block, layer = "mid_block", int(place) // 2
    if part in _UNET_PARTS:
        return f"{block}.{_UNET_PARTS[part].format(layer)}.{kind}"
    return f"{block}.attentions.{layer}.{part}.{kind}" if _UNET_ATTENTION.fullmatch(part) else name


def _vae_name(name: str, levels: int) -> str:
    for pattern, new in _VAE_PARTS.items():
        name = re.sub(pattern, new, name)
    # LDM numbers the decoder's levels as the encoder's, diffusers in the order of computation.
    return re.sub(r"\.up\.(\d+)\.", lambda match: f".up_blocks.{levels - 1 - int(match[1])}.", name)


def _rename(tensors: Mapping[str, np.ndarray], name_of: Callable[[str], str], where: str) -> Tensors:
    renamed: Tensors = {}
    for name, array in tensors.items():
        if name_of(name) in renamed:
            raise UserError(f"{where} has {name} and another tensor in the same place: expected one")
        renamed[name_of(name)] = array
    return renamed


def _refuse_foreign(names: Iterable[str], where: str) -> None:
    for pattern, kind in _FOREIGN.items():
        if any(re.search(pattern, name) for name in names):
            raise UserError(f"{where} is {kind}: give a checkpoint of the Stable Diffusion 1.x family")


def _shapes(tensors: Tensors, where: str) -> Shapes:
    return Shapes(tensors, where, "weights of the Stable Diffusion 1.x family; give others as a diffusers folder")


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the names have where the pattern has its group."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
