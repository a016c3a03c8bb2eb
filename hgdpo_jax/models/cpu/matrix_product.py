"""A convolution as one matrix product of the neighbourhood of every pixel and the kernel."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve(x: Float[Array, "n h w c"], kernel: Float[Array, "r s c d"], strides, padding) -> Float[Array, "n i j d"]:
    """The convolution of any kernel, strides and padding (`[(before, after), ...]` of rows and columns)."""
    rows, columns, _, _ = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    neighbours = [
        x[:, i : i + height : strides[0], j : j + width : strides[1]] for i in range(rows) for j in range(columns)
    ]
    return jnp.concatenate(neighbours, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
