"""A denoiser of two levels that a pooled embedding of the prompt steers beside its states."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from hgdpo_jax.models.convolution import convolution
from hgdpo_jax.models.layers import MidBlock, ResnetBlock, output_convolution
from hgdpo_jax.models.precision import precise
from hgdpo_jax.models.remat import rematerialized
from hgdpo_jax.models.unet_blocks import DownBlock, TimestepEmbedding, Transformer, UpBlock, timestep_embedding

WIDTHS, GROUPS, EPSILON = (16, 32), 4, 1e-5


class SecondUNet(nn.Module):
    """Predicts the velocity in latents of `channels`."""

    channels: int
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    remat: str = "none"

    @precise
    @nn.compact
    def __call__(self, latents, timesteps, states, pooled):
        first, second = WIDTHS
        dtype, remat = self.dtype, rematerialized(self.remat)
        resnet = functools.partial(remat(ResnetBlock), groups=GROUPS, epsilon=EPSILON, dtype=dtype)
        transformer = functools.partial(
            remat(Transformer), heads=2, groups=GROUPS, dtype=dtype, attention=self.attention
        )
        states = states.astype(dtype)
        time = timestep_embedding(timesteps, first, True, 0).astype(dtype)
        time = TimestepEmbedding(4 * first, dtype, name="time_embedding")(time)
        time = time + nn.Dense(4 * first, dtype=dtype, name="pooled_embedding")(pooled.astype(dtype))
        x = convolution(first, "conv_in", dtype)(latents.astype(dtype))
        skips = [x]
        for i, (width, reads, has_next) in enumerate(((first, transformer, True), (second, None, False))):
            block = DownBlock(width, resnet, reads, has_next, dtype, name=f"down_blocks.{i}")
            x, added = block(x, 1, time, states)
            skips += added
        x = MidBlock(second, resnet, transformer, name="mid_block")(x, time, states)
        for i, (width, reads, has_next) in enumerate(((second, None, True), (first, transformer, False))):
            skips, joined = skips[:-2], skips[-2:]
            block = UpBlock(width, resnet, reads, has_next, dtype, name=f"up_blocks.{i}")
            x = block(x, joined, time, states)
        return output_convolution(x, self.channels, GROUPS, EPSILON, dtype)
