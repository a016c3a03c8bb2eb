"""The training step of a LoRA."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from hgdpo_jax.training.accumulation import make_accumulating_step

# XLA may leave out roundings to bfloat16. It does so at other places in the policy, whose activations are kept for the
# gradient, than in the reference: while the LoRA is zero their errors would differ, and beta multiplies the difference.
_ROUND_AS_WRITTEN = {"xla_allow_excess_precision": False}


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

    return make_accumulating_step(loss_function, optimizer, draw, parts, mesh, _ROUND_AS_WRITTEN)
