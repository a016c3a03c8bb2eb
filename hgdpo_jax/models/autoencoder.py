"""The variational autoencoder of latent diffusion (diffusers `AutoencoderKL`)."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax.models.convolution import convolution
from hgdpo_jax.models.layers import GroupNorm, MidBlock, ResnetBlock, attend, output_convolution, upsample
from hgdpo_jax.models.parameters import NetworkConfig
from hgdpo_jax.models.precision import precise

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(NetworkConfig):
    """Shape of an autoencoder, under the names of diffusers' config.json."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    scaling_factor: float

    @property
    def factor(self) -> int:
        """Pixels per latent along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)


class MidAttention(nn.Module):
    """Single-head self-attention over all pixels."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        tokens = GroupNorm(self.groups, _EPSILON, self.dtype, name="group_norm")(x).reshape(len(x), -1, x.shape[-1])
        return x + attend(tokens, tokens, 1, self.dtype).reshape(x.shape)


class Encoder(nn.Module):
    config: AutoencoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        config, dtype = self.config, self.dtype
        resnet, middle = _blocks(config, dtype)
        x = convolution(config.block_out_channels[0], "conv_in", dtype)(x)
        for i, channels in enumerate(config.block_out_channels):
            for j in range(config.layers_per_block):
                x = resnet(channels, name=f"down_blocks.{i}.resnets.{j}")(x)
            if i < len(config.block_out_channels) - 1:
                # The reference pads right and below only.
                name, padding = f"down_blocks.{i}.downsamplers.0.conv", ((0, 1), (0, 1))
                x = nn.Conv(channels, (3, 3), (2, 2), padding, dtype=dtype, name=name)(x)
        return output_convolution(middle(x), 2 * config.latent_channels, config.norm_num_groups, _EPSILON, dtype)


class Decoder(nn.Module):
    config: AutoencoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        config, dtype = self.config, self.dtype
        resnet, middle = _blocks(config, dtype)
        x = middle(convolution(config.block_out_channels[-1], "conv_in", dtype)(x))
        for i, channels in enumerate(reversed(config.block_out_channels)):
            for j in range(config.layers_per_block + 1):
                x = resnet(channels, name=f"up_blocks.{i}.resnets.{j}")(x)
            if i < len(config.block_out_channels) - 1:
                x = convolution(channels, f"up_blocks.{i}.upsamplers.0.conv", dtype)(upsample(x))
        return output_convolution(x, 3, config.norm_num_groups, _EPSILON, dtype)


def _blocks(config: AutoencoderConfig, dtype: jnp.dtype) -> tuple[Callable[..., nn.Module], nn.Module]:
    """The class of the ResNet blocks, and the middle block, of an encoder or a decoder."""
    resnet = functools.partial(ResnetBlock, groups=config.norm_num_groups, epsilon=_EPSILON, dtype=dtype)
    attention = functools.partial(MidAttention, groups=config.norm_num_groups, dtype=dtype)
    return resnet, MidBlock(config.block_out_channels[-1], resnet, attention, name="mid_block")


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
