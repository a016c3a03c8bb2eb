"""Convolutions of 3x3 by Winograd's minimal filtering: a quarter of the multiplications, in float32."""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", Sec. 4: 4x4 places of the result
# come from 6x6 of the input. One row per output element, one number per input element.
_PLACES, _EXTENT = 4, 6
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_RESULT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


@jax.custom_vjp
def convolve(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "n h w d"]:
    """A convolution with one zero around every side; errors are about eight times those of the sum itself, 4e-6."""
    return _filter(x, kernel, "pnhwc,pcd->pnhwd")


def _filter(x: Array, kernel: Array, subscripts: str) -> Array:
    """The convolution with channels and features as in `subscripts`, for `p` products at once."""
    _, height, width, _ = x.shape
    down, right = -(-height // _PLACES), -(-width // _PLACES)
    x = jnp.pad(x, ((0, 0), (1, 1 + down * _PLACES - height), (1, 1 + right * _PLACES - width), (0, 0)))

    def tiles(x, axis, count):
        """Element i of all tiles along an axis, for each i."""
        end = (count - 1) * _PLACES + 1
        return [jax.lax.slice_in_dim(x, i, i + end, _PLACES, axis) for i in range(_EXTENT)]

    # Rows first, then columns. Six products of six matrices: one product of all 36 is slower, and 36 products of one
    # take twice as long to compile.
    rows = zip(_combine(_INPUT, tiles(x, 1, down)), _combine(_KERNEL, list(kernel)), strict=True)
    products = [
        jnp.einsum(
            subscripts,
            jnp.stack(_combine(_INPUT, tiles(row, 2, right))),
            jnp.stack(_combine(_KERNEL, list(kernel_row))),
        )
        for row, kernel_row in rows
    ]
    places = [jnp.stack(_combine(_RESULT, list(row)), axis=3) for row in _combine(_RESULT, products)]
    result = jnp.stack(places, axis=2)
    n, *_, features = result.shape
    return result.reshape(n, down * _PLACES, right * _PLACES, features)[:, :height, :width]


def _combine(matrix: Sequence[Sequence[float]], parts: Sequence[Array]) -> list[Array]:
    """The sums of parts that the rows of a matrix describe."""
    return [
        functools.reduce(
            operator.add, (part * np.float32(factor) for factor, part in zip(line, parts, strict=True) if factor)
        )
        for line in matrix
    ]


def _backward(residuals, gradient):
    x, kernel = residuals
    _, to_kernel = jax.vjp(
        lambda kernel: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        kernel,
    )
    # The gradient to the input is such a convolution too, with the kernel rotated by 180 degrees.
    return _filter(gradient, kernel[::-1, ::-1], "pnhwd,pcd->pnhwc"), *to_kernel(gradient)


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _backward)
