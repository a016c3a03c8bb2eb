"""Classifier-free guidance (Ho & Salimans 2022)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float


def guided(
    predict_noise: Callable[[Float[Array, "m h w c"], Float[Array, "m t d"]], Float[Array, "m h w c"]],
    latents: Float[Array, "n h w c"],
    text_states: Float[Array, "n t d"],
    empty_states: Float[Array, "n t d"],
    scale: float,
) -> Float[Array, "n h w c"]:
    """The noise prediction pushed away from the empty (or negative) prompt's by `scale`; 1 means no guidance.

    Both predictions come from one call of `predict_noise(latents, states)` on 2n images; without guidance it has n.
    """
    if scale == 1:
        return predict_noise(latents, text_states)

    def pairs(first, second):
        # Neighbours, not halves: a batch divided over devices stays where it is.
        return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])

    both = predict_noise(pairs(latents, latents), pairs(empty_states, text_states))
    empty, conditional = both[0::2], both[1::2]
    return empty + scale * (conditional - empty)
