"""Layers that the U-Net, the autoencoder, CLIP and BLIP share.

Module names are the PyTorch names, dots included, so that a parameter's path is its key in a diffusers file.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from hgdpo_jax.models.attention import attention
from hgdpo_jax.models.convolution import convolution
from hgdpo_jax.models.remat import keep


class GroupNorm(nn.Module):
    """Group normalisation over `[n, h, w, c]`, statistics in float32.

    One pass over the activations gives both moments per channel; on CPUs this is 9 times faster than reshaping into
    groups.
    """

    groups: int
    epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x32 = x.astype(jnp.float32)
        moments = keep(jnp.stack([x32.mean(axis=(1, 2)), jnp.square(x32).mean(axis=(1, 2))]))
        grouped = rearrange(moments, "m n (g k) -> m n g k", g=self.groups).mean(axis=-1)
        mean = grouped[0]
        inverse = jax.lax.rsqrt(jnp.maximum(grouped[1] - jnp.square(mean), 0.0) + self.epsilon)
        mean, inverse = (jnp.repeat(value, channels // self.groups, axis=-1) for value in (mean, inverse))
        gain = inverse * scale
        shift = bias - mean * gain
        return (x32 * gain[:, None, None] + shift[:, None, None]).astype(self.dtype)


def upsample(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Nearest-neighbour enlargement by two, as a broadcast: `jax.image.resize` gathers instead, four times slower."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def output_convolution(
    x: Float[Array, "n h w c"], features: int, groups: int, epsilon: float, dtype: jnp.dtype
) -> Float[Array, "n h w d"]:
    """The last layers of a U-Net, an encoder or a decoder: norm, activation and convolution."""
    x = nn.silu(GroupNorm(groups, epsilon, dtype, name="conv_norm_out")(x))
    return convolution(features, "conv_out", dtype)(x)


class ResnetBlock(nn.Module):
    """Norm, convolution, norm, convolution, and a shortcut; a projection of `time_state`, if any, is added between."""

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


class MidBlock(nn.Module):
    """Attention, to a context if any, between two ResNet blocks."""

    channels: int
    resnet: Callable[..., nn.Module]
    attention: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, time_state=None, *context):
        x = self.resnet(self.channels, name="resnets.0")(x, time_state)
        x = self.attention(name="attentions.0")(x, *context)
        return self.resnet(self.channels, name="resnets.1")(x, time_state)


def attend(
    x: Float[Array, "n q d"],
    context: Float[Array, "n k c"],
    heads: int,
    dtype: jnp.dtype,
    names: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0"),
    mask: Float[Array, "..."] | None = None,
    use_bias: bool = True,
    implementation: str = "auto",
) -> Float[Array, "n q d"]:
    """Multi-head attention of `x` to `context`, with its four projections called `names`, the output's last.

    `use_bias` applies to the first three.
    """
    width = x.shape[-1]
    query, key, value = (
        nn.Dense(width, use_bias, dtype, name=name)(of) for name, of in zip(names, (x, context, context), strict=False)
    )
    attended = attention(keep(query), keep(key), keep(value), heads, mask, implementation)
    return nn.Dense(width, dtype=dtype, name=names[-1])(attended)


def embed_patches(
    pixels: Float[Array, "n height width 3"], class_token: Array, size: int, dtype: jnp.dtype, name: str, use_bias: bool
) -> Float[Array, "n t d"]:
    """The class token and the embeddings of all patches of `size` x `size` pixels, by a convolution called `name`."""
    count, width = len(pixels), class_token.shape[-1]
    patches = nn.Conv(width, (size, size), (size, size), "VALID", use_bias=use_bias, dtype=dtype, name=name)(
        pixels.astype(dtype)
    ).reshape(count, -1, width)
    class_tokens = jnp.broadcast_to(class_token.astype(dtype), (count, 1, width))
    return jnp.concatenate([class_tokens, patches], axis=1)
