"""The variational autoencoder of latent diffusion (diffusers `AutoencoderKL`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax.models.attention import attention
from hgdpo_jax.models.convolution import convolution
from hgdpo_jax.models.layers import GroupNorm, upsample
from hgdpo_jax.models.precision import precise

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of an autoencoder, under the names of diffusers' config.json."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AutoencoderConfig":
        """Reads a diffusers config.json."""
        names = {field.name for field in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
        return cls(**chosen)

    @property
    def factor(self) -> int:
        """Pixels per latent along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)


class AutoencoderBlock(nn.Module):
    """Norm, convolution, norm, convolution, and a shortcut."""

    channels: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        h = nn.silu(GroupNorm(self.groups, _EPSILON, self.dtype, name="norm1")(x))
        h = convolution(self.channels, "conv1", self.dtype)(h)
        h = nn.silu(GroupNorm(self.groups, _EPSILON, self.dtype, name="norm2")(h))
        h = convolution(self.channels, "conv2", self.dtype)(h)
        if x.shape[-1] != self.channels:
            x = convolution(self.channels, "conv_shortcut", self.dtype, kernel=1)(x)
        return x + h


class MidAttention(nn.Module):
    """Single-head self-attention over all pixels."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        n, h, w, channels = x.shape
        tokens = GroupNorm(self.groups, _EPSILON, self.dtype, name="group_norm")(x).reshape(n, h * w, channels)
        query, key, value = (nn.Dense(channels, dtype=self.dtype, name=f"to_{name}")(tokens) for name in "qkv")
        attended = nn.Dense(channels, dtype=self.dtype, name="to_out.0")(attention(query, key, value, heads=1))
        return x + attended.reshape(n, h, w, channels)


class MidBlock(nn.Module):
    channels: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = AutoencoderBlock(self.channels, self.groups, self.dtype, name="resnets.0")(x)
        x = MidAttention(self.groups, self.dtype, name="attentions.0")(x)
        return AutoencoderBlock(self.channels, self.groups, self.dtype, name="resnets.1")(x)


class Encoder(nn.Module):
    config: AutoencoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        config, dtype = self.config, self.dtype
        x = convolution(config.block_out_channels[0], "conv_in", dtype)(x)
        for i, channels in enumerate(config.block_out_channels):
            for j in range(config.layers_per_block):
                x = AutoencoderBlock(channels, config.norm_num_groups, dtype, name=f"down_blocks.{i}.resnets.{j}")(x)
            if i < len(config.block_out_channels) - 1:
                # The reference pads right and below only.
                x = nn.Conv(
                    channels,
                    (3, 3),
                    strides=(2, 2),
                    padding=((0, 1), (0, 1)),
                    dtype=dtype,
                    name=f"down_blocks.{i}.downsamplers.0.conv",
                )(x)
        x = MidBlock(config.block_out_channels[-1], config.norm_num_groups, dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, _EPSILON, dtype, name="conv_norm_out")(x))
        return convolution(2 * config.latent_channels, "conv_out", dtype)(x)


class Decoder(nn.Module):
    config: AutoencoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        config, dtype = self.config, self.dtype
        x = convolution(config.block_out_channels[-1], "conv_in", dtype)(x)
        x = MidBlock(config.block_out_channels[-1], config.norm_num_groups, dtype, name="mid_block")(x)
        for i, channels in enumerate(reversed(config.block_out_channels)):
            for j in range(config.layers_per_block + 1):
                x = AutoencoderBlock(channels, config.norm_num_groups, dtype, name=f"up_blocks.{i}.resnets.{j}")(x)
            if i < len(config.block_out_channels) - 1:
                x = convolution(channels, f"up_blocks.{i}.upsamplers.0.conv", dtype)(upsample(x))
        x = nn.silu(GroupNorm(config.norm_num_groups, _EPSILON, dtype, name="conv_norm_out")(x))
        return convolution(3, "conv_out", dtype)(x)


class Autoencoder(nn.Module):
    """Images in [-1, 1] to the posterior of their latents and back; latents here are not yet scaled."""

    config: AutoencoderConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        latent = self.config.latent_channels
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = nn.Conv(2 * latent, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(latent, (1, 1), dtype=self.dtype)

    @precise
    def encode(
        self, images: Float[Array, "n height width 3"]
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
        """Mean and logarithm of the variance of each latent, in float32."""
        moments = self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    @precise
    def decode(self, latents: Float[Array, "n h w c"]) -> Float[Array, "n height width 3"]:
        """Images, nominally in [-1, 1], in float32."""
        return self.decoder(self.post_quant_conv(latents.astype(self.dtype))).astype(jnp.float32)

    def __call__(self, images, noise):
        """Reconstruction through a sampled latent, with the posterior's moments: what training needs."""
        mean, log_variance = self.encode(images)
        return self.decode(mean + jnp.exp(0.5 * log_variance) * noise), mean, log_variance
