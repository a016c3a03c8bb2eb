"""Adam with its two moments stored in 8 bits (Dettmers et al., arXiv 2110.02861), as in bitsandbytes' `Adam8bit`."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

# Elements per scale, and the number of elements from which a tensor is quantised, as in bitsandbytes.
BLOCK_SIZE = 256
SMALLEST_SIZE = 4096


class Quantized(NamedTuple):
    """A flattened tensor in blocks, the last one padded; a value is its code's level times its block's scale."""

    codes: UInt8[Array, "blocks 256"]
    scales: Float[Array, " blocks"]


def dynamic_levels(signed: bool) -> np.ndarray:
    """The 256 levels of bitsandbytes' dynamic map, float32, ascending, in [-1, 1] if signed, otherwise in [0, 1].

    Besides 0 and 1, these are the midpoints of equal parts of seven decades down to 1e-7. Each decade has twice as many
    parts as the one below, so small values keep a relative precision that a uniform grid would lose.
    """
    levels = [np.array([0, 1], np.float32)]
    for power in range(7):
        parts = 2 ** (power if signed else power + 1)
        share = np.arange(parts + 1) / parts
        width = float(np.float32(1) - np.float32(0.1))
        # From the nearer end, like torch.linspace: a level's last digit decides some codes.
        edges = np.where(share < 0.5, np.float32(0.1) + width * share, 1 - width * (1 - share)).astype(np.float32)
        middles = (edges[:-1] + edges[1:]) / 2 * np.float32(10.0 ** (power - 6))
        levels += [middles, -middles] if signed else [middles]
    return np.sort(np.concatenate(levels))


def quantize(values: Float[Array, "..."], levels: np.ndarray) -> Quantized:
    """Rounds each value, divided by the largest magnitude in its block, to the nearest level."""
    blocks = jnp.pad(values.ravel(), (0, -values.size % BLOCK_SIZE)).reshape(-1, BLOCK_SIZE)
    scales = jnp.max(jnp.abs(blocks), axis=1)
    # A block of zeros has no scale to divide by.
    shares = blocks / jnp.where(scales > 0, scales, 1.0)[:, None]
    codes = jnp.searchsorted((levels[:-1] + levels[1:]) / 2, shares)
    return Quantized(codes.astype(jnp.uint8), scales)


def dequantize(tensor: Quantized, levels: np.ndarray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The float32 values of a quantised tensor of the given shape."""
    blocks = jnp.asarray(levels)[tensor.codes] * tensor.scales[:, None]
    return blocks.ravel()[: math.prod(shape)].reshape(shape)


def scale_by_adam_8bit(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam` on float32 parameters, with `Quantized` moments between steps.

    As in bitsandbytes, an update uses the new moments before they are rounded, and tensors of fewer than 4096 elements
    are not quantised. Unlike here, its GPU kernels never round a negative first moment to zero.
    """
    adam = optax.scale_by_adam(b1, b2, eps)
    # The second moment is never negative.
    first_levels, second_levels = dynamic_levels(signed=True), dynamic_levels(signed=False)

    def packed(state):
        def pack(moments, levels):
            return jax.tree.map(lambda x: quantize(x, levels) if x.size >= SMALLEST_SIZE else x, moments)

        return state._replace(mu=pack(state.mu, first_levels), nu=pack(state.nu, second_levels))

    def unpacked(moments, levels, like):
        def unpack(x, moment):
            return dequantize(moment, levels, x.shape) if isinstance(moment, Quantized) else moment

        return jax.tree.map(unpack, like, moments)

    def update(gradients, state, parameters=None):
        mu, nu = unpacked(state.mu, first_levels, gradients), unpacked(state.nu, second_levels, gradients)
        updates, state = adam.update(gradients, state._replace(mu=mu, nu=nu), parameters)
        return updates, packed(state)

    return optax.GradientTransformation(lambda parameters: packed(adam.init(parameters)), update)
