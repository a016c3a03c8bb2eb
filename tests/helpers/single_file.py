"""A Stable Diffusion 1.x of PyTorch's libraries in one file, under the names of LDM."""

import numpy as np

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
SD15 = {
    "unet": {"channels": (320, 640, 1280, 1280), "layers": 2, "attentive": (0, 1, 2), "text_width": 768},
    "vae": {"channels": (128, 256, 512, 512), "layers": 2},
    "text_encoder": {"vocab_size": 49408, "width": 768, "layers": 12},
}


def ldm_unet_names(channels, layers, attentive):
    """Names in the order in which LDM's constructor makes them."""

    def resnet(name, width, out):
        parts = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
        return [f"{name}.{part}" for part in parts + ["skip_connection"] * (width != out)]

    def transformer(name):
        block = f"{name}.transformer_blocks.0"
        attentions = [f"{block}.attn{i}.to_{part}" for i in (1, 2) for part in ("q", "k", "v", "out.0")]
        others = ["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"]
        ends = [f"{name}.{part}" for part in ("norm", "proj_in", "proj_out")]
        return ends + attentions + [f"{block}.{part}" for part in others]

    names = ["time_embed.0", "time_embed.2", "input_blocks.0.0"]
    width, skips, number = channels[0], [channels[0]], 1
    for level, out in enumerate(channels):
        for _ in range(layers):
            names += resnet(f"input_blocks.{number}.0", width, out)
            names += transformer(f"input_blocks.{number}.1") if level in attentive else []
            width, number = out, number + 1
            skips.append(width)
        if level < len(channels) - 1:
            names.append(f"input_blocks.{number}.0.op")
            skips.append(width)
            number += 1
    names += resnet("middle_block.0", 1, 1) + transformer("middle_block.1") + resnet("middle_block.2", 1, 1)
    number = 0
    for level, out in reversed(list(enumerate(channels))):
        for layer in range(layers + 1):
            names += resnet(f"output_blocks.{number}.0", width + skips.pop(), out)
            names += transformer(f"output_blocks.{number}.1") if level in attentive else []
            if level and layer == layers:
                names.append(f"output_blocks.{number}.{2 if level in attentive else 1}.conv")
            width, number = out, number + 1
    return with_kinds([*names, "out.0", "out.2"], no_bias=("to_q", "to_k", "to_v"))


def ldm_vae_names(channels, layers):
    """Names in the order in which LDM's constructor makes them."""

    def resnet(name, width, out):
        parts = ["norm1", "conv1", "norm2", "conv2"] + ["nin_shortcut"] * (width != out)
        return [f"{name}.{part}" for part in parts]

    def ends(name):
        middle = [*resnet("mid.block_1", 1, 1), *resnet("mid.block_2", 1, 1)]
        middle += [f"mid.attn_1.{part}" for part in ("norm", "q", "k", "v", "proj_out")]
        return [f"{name}.{part}" for part in ("conv_in", "norm_out", "conv_out", *middle)]

    names, width = ["quant_conv", "post_quant_conv", *ends("encoder"), *ends("decoder")], channels[0]
    for level, out in enumerate(channels):
        for layer in range(layers):
            names += resnet(f"encoder.down.{level}.block.{layer}", width, out)
            width = out
        names += [f"encoder.down.{level}.downsample.conv"] * (level < len(channels) - 1)
    for level, out in reversed(list(enumerate(channels))):
        for layer in range(layers + 1):
            names += resnet(f"decoder.up.{level}.block.{layer}", width, out)
            width = out
        names += [f"decoder.up.{level}.upsample.conv"] * (level > 0)
    return with_kinds(names)


def with_kinds(names, no_bias=()):
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")[: 1 if name.endswith(no_bias) else 2]]


def make_models(unet, vae, text_encoder):
    """The models of diffusers and transformers."""
    import diffusers
    import transformers

    def kinds(side, levels):
        blocks = [f"CrossAttn{side}Block2D" if level in unet["attentive"] else f"{side}Block2D" for level in levels]
        return tuple(blocks)

    levels = range(len(unet["channels"]))
    return {
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=unet["channels"],
            down_block_types=kinds("Down", levels),
            up_block_types=kinds("Up", reversed(levels)),
            layers_per_block=unet["layers"],
            cross_attention_dim=unet["text_width"],
            attention_head_dim=8,
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=vae["channels"],
            down_block_types=("DownEncoderBlock2D",) * len(vae["channels"]),
            up_block_types=("UpDecoderBlock2D",) * len(vae["channels"]),
            layers_per_block=vae["layers"],
        ),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=text_encoder["vocab_size"],
                hidden_size=text_encoder["width"],
                intermediate_size=4 * text_encoder["width"],
                num_hidden_layers=text_encoder["layers"],
                num_attention_heads=text_encoder["width"] // 64,
            )
        ),
    }


def diffusers_names(options):
    """Name in a single file -> (part, name in diffusers), by diffusers' own conversion."""
    from diffusers.loaders import single_file_utils as single_file

    unet, vae = options["unet"], options["vae"]
    levels = [None] * len(vae["channels"])
    names = ldm_unet_names(unet["channels"], unet["layers"], unet["attentive"])
    places = {PREFIXES["unet"] + name: np.array(i) for i, name in enumerate(names)}
    converted = single_file.convert_ldm_unet_checkpoint(dict(places), {"layers_per_block": unet["layers"]})
    found = {("unet", name): value for name, value in converted.items()}
    places |= {PREFIXES["vae"] + name: np.array(-i - 1) for i, name in enumerate(ldm_vae_names(**vae))}
    converted = single_file.convert_ldm_vae_checkpoint(places, {"down_block_types": levels, "up_block_types": levels})
    found |= {("vae", name): value for name, value in converted.items()}
    back = {int(value): key for key, value in found.items()}
    return {name: back[int(value)] for name, value in places.items()}


def single_file_of(models, options):
    """The models' weights under the names of a single file; the VAE's attention as 1x1 convolutions."""
    states = {part: model.state_dict() for part, model in models.items()}
    tensors = {}
    for name, (part, key) in diffusers_names(options).items():
        tensor = states[part].pop(key)
        is_convolution = ".mid.attn_1." in name and key.endswith("weight") and "norm" not in name
        tensors[name] = tensor[:, :, None, None] if is_convolution else tensor
    assert not states["unet"] and not states["vae"], "the names of the single file are not all"
    for key, tensor in states["text_encoder"].items():
        tensors[f"{PREFIXES['text_encoder']}text_model.{key.removeprefix('text_model.')}"] = tensor
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
