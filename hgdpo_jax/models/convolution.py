"""Convolutions padded as in PyTorch; on CPUs by matrix products where these are faster."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from hgdpo_jax.models.cpu import matrix_product, winograd

# With fewer channels or features, Winograd's sums cost what its fewer multiplications save.
_FEWEST_CHANNELS = 128
# These sums take 2.25 times the memory of the feature map: 64 MB of it at most.
_LARGEST_MAP = 2**24


def convolution(features: int, name: str, dtype: jnp.dtype, kernel: int = 3, stride: int = 1) -> nn.Conv:
    """A square convolution padded as PyTorch pads it: `kernel // 2` zeros on every side."""
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        dtype=dtype,
        name=name,
        conv_general_dilated_cls=lambda: _convolve,
    )


def _convolve(x, kernel, strides, padding, **options):
    """`jax.lax.conv_general_dilated`, computed in another way on CPUs where that is faster."""
    usual = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    rows, columns, channels, features = kernel.shape
    pixels = x.size // channels
    if (
        (rows, columns, *strides) == (3, 3, 1, 1)
        and x.dtype == jnp.float32
        and min(channels, features) >= _FEWEST_CHANNELS
        and pixels > channels
        and x.size <= _LARGEST_MAP
    ):
        # 2 to 3 times as fast as the convolution on two cores of an EPYC, from 16x16x640 to 64x64x640.
        return jax.lax.platform_dependent(x, kernel, cpu=winograd.convolve, default=usual)
    # XLA copies the kernel into another order for each gradient. If a feature map has fewer pixels than channels, as on
    # the lower levels of a U-Net, that takes longer than the arithmetic: 76 ms against 10 at 8x8x1280.
    if rows * columns > 1 and pixels > channels:
        return usual(x, kernel)
    product = functools.partial(matrix_product.convolve, strides=strides, padding=padding)
    return jax.lax.platform_dependent(x, kernel, cpu=product, default=usual)
