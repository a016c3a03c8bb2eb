"""The training step of a LoRA."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from hgdpo_jax.training.accumulation import make_accumulating_step


def make_policy_step(
    losses: Callable[..., dict[str, jax.Array]], draw: Callable[..., Any], optimizer, parts: int, mesh: Mesh
):
    """One compiled step `(state, base, batch, key) -> (state, scalars)`; gradients of `parts` slices are averaged.

    `draw(batch, key)` adds what is random in a batch, `losses(lora, base, batch)` has a value for each of its rows.
    """

    def loss_function(parameters, base, batch):
        values = losses(parameters, base, batch)
        means = {name: value.mean() for name, value in values.items()}
        return means["loss"], means

    return make_accumulating_step(loss_function, optimizer, draw, parts, mesh)
