"""The conditional U-Net of Stable Diffusion 1.x (diffusers `UNet2DConditionModel`)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hgdpo_jax.errors import UserError
from hgdpo_jax.models.attention import attention
from hgdpo_jax.models.convolution import convolution
from hgdpo_jax.models.layers import GroupNorm, upsample
from hgdpo_jax.models.precision import precise
from hgdpo_jax.models.remat import keep, rematerialized

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
class UNetConfig:
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
    def from_dict(cls, values: Mapping[str, Any]) -> "UNetConfig":
        """Reads a diffusers config.json; raises UserError where it describes another architecture than SD1.x."""
        for name, expected in _FIXED.items():
            if values.get(name, expected) != expected:
                raise UserError(
                    f"this U-Net has {name}={values[name]!r}, expected {expected!r}: "
                    "give a Stable Diffusion 1.x checkpoint"
                )
        names = {field.name for field in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
        config = cls(**chosen)
        if not isinstance(config.attention_head_dim, int) or not isinstance(config.layers_per_block, int):
            raise UserError("this U-Net has a head count per level: give a Stable Diffusion 1.x checkpoint")
        return config


def timestep_embedding(
    timesteps: Int[Array, "n"], channels: int, flip_sin_to_cos: bool, freq_shift: int
) -> Float[Array, "n c"]:
    """Sinusoidal embedding of the timesteps in float32 (diffusers `get_timestep_embedding`)."""
    half = channels // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    parts = [jnp.cos(angles), jnp.sin(angles)] if flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts, axis=-1)


class TimestepEmbedding(nn.Module):
    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.channels, dtype=self.dtype, name="linear_1")(x)
        return nn.Dense(self.channels, dtype=self.dtype, name="linear_2")(nn.silu(x))


class ResnetBlock(nn.Module):
    """Two convolutions around a time projection; without `time_state` it is the autoencoder's block."""

    channels: int
    groups: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, time_state=None):
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm1")(x))
        h = convolution(self.channels, "conv1", self.dtype)(h)
        if time_state is not None:
            time = nn.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")(nn.silu(time_state))
            h = h + time[:, None, None, :]
        h = keep(h)
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm2")(h))
        h = convolution(self.channels, "conv2", self.dtype)(h)
        if x.shape[-1] != self.channels:
            x = convolution(self.channels, "conv_shortcut", self.dtype, kernel=1)(x)
        return x + h


class Attention(nn.Module):
    """Attention of `x` to `context`; the LoRA of HG-DPO sits on its four projections."""

    channels: int
    heads: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x, context):
        query = nn.Dense(self.channels, use_bias=False, dtype=self.dtype, name="to_q")(x)
        key = nn.Dense(self.channels, use_bias=False, dtype=self.dtype, name="to_k")(context)
        value = nn.Dense(self.channels, use_bias=False, dtype=self.dtype, name="to_v")(context)
        attended = attention(keep(query), keep(key), keep(value), self.heads, implementation=self.attention)
        return nn.Dense(self.channels, dtype=self.dtype, name="to_out.0")(attended)


class FeedForward(nn.Module):
    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = keep(nn.Dense(8 * self.channels, dtype=self.dtype, name="net.0.proj")(x))
        value, gate = jnp.split(x, 2, axis=-1)
        # The exact GELU: the tanh form differs by more than float32 rounding.
        return nn.Dense(self.channels, dtype=self.dtype, name="net.2")(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    channels: int
    heads: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x, text_states):
        def norm(name, x):
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(x)

        shape = (self.channels, self.heads, self.dtype, self.attention)
        attended = norm("norm1", x)
        x = keep(x + Attention(*shape, name="attn1")(attended, attended))
        x = keep(x + Attention(*shape, name="attn2")(norm("norm2", x), text_states))
        return x + FeedForward(self.channels, self.dtype, name="ff")(norm("norm3", x))


class Transformer(nn.Module):
    """Self- and cross-attention over the pixels of a feature map (diffusers `Transformer2DModel`)."""

    heads: int
    groups: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x, text_states):
        n, h, w, channels = x.shape
        # 1e-6 here, 1e-5 in the ResNet blocks: as in the reference.
        tokens = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        tokens = keep(convolution(channels, "proj_in", self.dtype, kernel=1)(tokens).reshape(n, h * w, channels))
        block = TransformerBlock(channels, self.heads, self.dtype, self.attention, name="transformer_blocks.0")
        tokens = block(tokens, text_states)
        return x + convolution(channels, "proj_out", self.dtype, kernel=1)(tokens.reshape(n, h, w, channels))


class DownBlock(nn.Module):
    channels: int
    layers: int
    resnet: Callable[..., nn.Module]
    transformer: Callable[..., nn.Module] | None
    has_downsampler: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, time_state, text_states):
        skips = []
        for i in range(self.layers):
            x = self.resnet(self.channels, name=f"resnets.{i}")(x, time_state)
            if self.transformer:
                x = self.transformer(name=f"attentions.{i}")(x, text_states)
            skips.append(x)
        if self.has_downsampler:
            x = convolution(self.channels, "downsamplers.0.conv", self.dtype, stride=2)(x)
            skips.append(x)
        return x, skips


class UpBlock(nn.Module):
    channels: int
    resnet: Callable[..., nn.Module]
    transformer: Callable[..., nn.Module] | None
    has_upsampler: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, skips: Sequence[jax.Array], time_state, text_states):
        for i, skip in enumerate(reversed(skips)):
            x = jnp.concatenate([x, skip], axis=-1)
            x = self.resnet(self.channels, name=f"resnets.{i}")(x, time_state)
            if self.transformer:
                x = self.transformer(name=f"attentions.{i}")(x, text_states)
        if self.has_upsampler:
            x = convolution(self.channels, "upsamplers.0.conv", self.dtype)(upsample(x))
        return x


class MidBlock(nn.Module):
    channels: int
    resnet: Callable[..., nn.Module]
    transformer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, time_state, text_states):
        x = self.resnet(self.channels, name="resnets.0")(x, time_state)
        x = self.transformer(name="attentions.0")(x, text_states)
        return self.resnet(self.channels, name="resnets.1")(x, time_state)


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
        transformer = functools.partial(
            remat(Transformer),
            heads=config.attention_head_dim,
            groups=groups,
            dtype=dtype,
            attention=self.attention,
        )
        text_states = text_states.astype(dtype)
        time_state = timestep_embedding(timesteps, channels[0], config.flip_sin_to_cos, config.freq_shift)
        time_state = TimestepEmbedding(4 * channels[0], dtype, name="time_embedding")(time_state.astype(dtype))

        x = convolution(channels[0], "conv_in", dtype)(latents.astype(dtype))
        skips = [x]
        for i, kind in enumerate(config.down_block_types):
            block = DownBlock(
                channels[i],
                config.layers_per_block,
                resnet,
                transformer if kind == "CrossAttnDownBlock2D" else None,
                i < levels - 1,
                dtype,
                name=f"down_blocks.{i}",
            )
            x, block_skips = block(x, time_state, text_states)
            skips += block_skips
        x = MidBlock(channels[-1], resnet, transformer, name="mid_block")(x, time_state, text_states)
        for i, kind in enumerate(config.up_block_types):
            count = config.layers_per_block + 1
            skips, block_skips = skips[:-count], skips[-count:]
            x = UpBlock(
                channels[levels - 1 - i],
                resnet,
                transformer if kind == "CrossAttnUpBlock2D" else None,
                i < levels - 1,
                dtype,
                name=f"up_blocks.{i}",
            )(x, block_skips, time_state, text_states)

        def output(unet, x):
            x = nn.silu(GroupNorm(groups, epsilon, dtype, name="conv_norm_out")(x))
            return convolution(config.out_channels, "conv_out", dtype)(x)

        return remat(output)(self, x)
