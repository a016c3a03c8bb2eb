"""The conditional U-Net of Stable Diffusion 1.x (diffusers `UNet2DConditionModel`)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hgdpo_jax.errors import UserError
from hgdpo_jax.models.convolution import convolution
from hgdpo_jax.models.layers import MidBlock, ResnetBlock, output_convolution
from hgdpo_jax.models.parameters import NetworkConfig
from hgdpo_jax.models.precision import precise
from hgdpo_jax.models.remat import rematerialized
from hgdpo_jax.models.unet_blocks import DownBlock, TimestepEmbedding, Transformer, UpBlock, timestep_embedding

# Values of a diffusers config.json that other architectures change and this module does not implement.
_FIXED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "dual_cross_attention": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
    "use_linear_projection": False,
}


@dataclasses.dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """Shape of a U-Net, under the names of diffusers' config.json; `attention_head_dim` counts heads there."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    attention_head_dim: int = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    sample_size: int = 64

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads a diffusers config.json; raises UserError where it describes another architecture than SD1.x."""
        for name, expected in _FIXED.items():
            if values.get(name, expected) != expected:
                raise UserError(
                    f"this U-Net has {name}={values[name]!r}, expected {expected!r}: "
                    "give a Stable Diffusion 1.x checkpoint"
                )
        config = super().from_dict(values)
        if not isinstance(config.attention_head_dim, int) or not isinstance(config.layers_per_block, int):
            raise UserError(
                f"this U-Net has attention_head_dim={config.attention_head_dim!r} and layers_per_block="
                f"{config.layers_per_block!r}, expected one number each: give a Stable Diffusion 1.x checkpoint"
            )
        return config


class UNet(nn.Module):
    """Predicts the noise in `latents` (or the velocity, as its checkpoint was trained) in `dtype`.

    `attention` as in `models/attention.py`; `remat`, of each ResNet block and transformer, as in `models/remat.py`.
    """

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    remat: str = "none"

    @precise
    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "n h w c"],
        timesteps: Int[Array, "n"],
        text_states: Float[Array, "n t d"],
    ) -> Float[Array, "n h w c"]:
        config, dtype = self.config, self.dtype
        channels, levels = config.block_out_channels, len(config.block_out_channels)
        groups, epsilon = config.norm_num_groups, config.norm_eps
        remat = rematerialized(self.remat)
        resnet = functools.partial(remat(ResnetBlock), groups=groups, epsilon=epsilon, dtype=dtype)
        heads, attention = config.attention_head_dim, self.attention
        transformer = functools.partial(
            remat(Transformer), heads=heads, groups=groups, dtype=dtype, attention=attention
        )

        def level(block, number, kind, last, name):
            attends = transformer if kind.startswith("CrossAttn") else None
            return block(channels[number], resnet, attends, number != last, dtype, name=name)

        text_states = text_states.astype(dtype)
        time_state = timestep_embedding(timesteps, channels[0], config.flip_sin_to_cos, config.freq_shift)
        time_state = TimestepEmbedding(4 * channels[0], dtype, name="time_embedding")(time_state.astype(dtype))

        x = convolution(channels[0], "conv_in", dtype)(latents.astype(dtype))
        skips = [x]
        for i, kind in enumerate(config.down_block_types):
            block = level(DownBlock, i, kind, levels - 1, f"down_blocks.{i}")
            x, block_skips = block(x, config.layers_per_block, time_state, text_states)
            skips += block_skips
        x = MidBlock(channels[-1], resnet, transformer, name="mid_block")(x, time_state, text_states)
        for i, kind in enumerate(config.up_block_types):
            count = config.layers_per_block + 1
            skips, block_skips = skips[:-count], skips[-count:]
            block = level(UpBlock, levels - 1 - i, kind, 0, f"up_blocks.{i}")
            x = block(x, block_skips, time_state, text_states)

        def output(unet, x):
            return output_convolution(x, config.out_channels, groups, epsilon, dtype)

        return remat(output)(self, x)
