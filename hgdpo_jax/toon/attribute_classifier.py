"""A small convolutional classifier with one head per attribute, which the toon world's oracle reads images with."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, UInt8

from hgdpo_jax.models.convolution import convolution
from hgdpo_jax.models.layers import GroupNorm
from hgdpo_jax.models.precision import precise
from hgdpo_jax.toon.attributes import ATTRIBUTES

_CHANNELS = (16, 32, 64, 64)
_WIDTH = 192


class AttributeClassifier(nn.Module):
    """Pixels in [-1, 1] to the logits of the classes of each attribute, in the order of ATTRIBUTES."""

    @precise
    @nn.compact
    def __call__(self, pixels: Float[Array, "n height width 3"]) -> list[Float[Array, "n classes"]]:
        x = convolution(_CHANNELS[0], "conv_in", pixels.dtype)(pixels)
        for i, channels in enumerate(_CHANNELS[1:]):
            x = nn.silu(GroupNorm(8, 1e-5, pixels.dtype, name=f"norms.{i}")(x))
            x = convolution(channels, f"convs.{i}", pixels.dtype, stride=2)(x)
        # No pooling: the position of a part matters as much as its presence.
        x = nn.silu(GroupNorm(8, 1e-5, pixels.dtype, name="norm_out")(x)).reshape(x.shape[0], -1)
        x = nn.silu(nn.Dense(_WIDTH, name="hidden")(x))
        return [nn.Dense(len(classes), name=f"heads.{name}")(x) for name, classes in ATTRIBUTES.items()]


def to_float(pixels: UInt8[ArrayLike, "n height width 3"]) -> Float[Array, "n height width 3"]:
    """Pixels to [-1, 1]."""
    return jnp.asarray(pixels, jnp.float32) / 127.5 - 1.0


def likeliest(logits: list[Float[Array, "n classes"]]) -> Int[Array, "n attributes"]:
    """Index of the likeliest class of each attribute."""
    return jnp.stack([jnp.argmax(each, axis=-1) for each in logits], axis=-1)
