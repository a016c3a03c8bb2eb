"""Classifier-free guidance (Ho & Salimans 2022)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def guidance_scale(scale: float) -> float | None:
    """The `scale` of `guided`: a number may be an argument of a program; 1 is None, which saves a prediction."""
    return None if scale == 1 else float(scale)


def guided(
    predict_noise: Callable[[Float[Array, "m h w c"], Any], Float[Array, "m h w c"]],
    latents: Float[Array, "n h w c"],
    conditioning: Any,
    negative: Any,
    scale: float | jax.Array | None,
) -> Float[Array, "n h w c"]:
    """The noise prediction, guided by `scale` away from that of the empty or negative prompt; None: not guided.

    Both predictions come from one call of `predict_noise(latents, conditioning)` on 2n images, or on n images without
    guidance. Conditioning is a tree of arrays with one row per image.
    """
    if scale is None:
        return predict_noise(latents, conditioning)

    def pairs(first, second):
        # Interleaved, so that a sharded batch stays on its devices.
        return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])

    both = predict_noise(pairs(latents, latents), jax.tree.map(pairs, negative, conditioning))
    empty, conditional = both[0::2], both[1::2]
    return empty + scale * (conditional - empty)
