"""Training steps whose batch goes through the devices in parts, because its gradient as a whole does not fit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hgdpo_jax.sharding import parameter_sharding

Scalars = dict[str, jax.Array]


def accumulation_steps(batch_size: int, device_batch: int, devices: int) -> int:
    """Parts into which a batch is cut: the fewest whose share of a device has at most `device_batch` rows."""
    share = batch_size // devices
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= device_batch)


def make_accumulating_step(
    loss_function: Callable[[Any, Any, Any], tuple[jax.Array, Scalars]],
    optimizer: optax.GradientTransformation,
    draw: Callable[[Any, jax.Array], Any],
    parts: int,
    mesh: Mesh,
):
    """One compiled step `(state, frozen, batch, key) -> (state, scalars)`; gradients of `parts` slices are averaged.

    `loss_function(parameters, frozen, batch)` is a mean over the rows of a batch, with other means to log. `draw(batch,
    key)` adds to the whole batch what is random in it, one row a row, so that this does not depend on how the batch is
    divided. The state has `parameters` and `optimizer`; its buffers are reused. Parameters that are divided over the
    mesh's "fsdp" axis are put together for the loss only, and their gradients divided as they are.
    """

    def gradient(parameters, frozen, batch):
        def loss(parameters):
            return loss_function(_whole(parameters, mesh), _whole(frozen, mesh), batch)

        values, gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        return values, _divided(gradients, mesh)

    def step(state, frozen, batch, key):
        batch = draw(batch, key)
        if parts == 1:
            (_, scalars), gradients = gradient(state["parameters"], frozen, batch)
        else:
            count = jax.tree.leaves(batch)[0].shape[0]
            # Strided, so that each part is spread over all devices as the batch is.
            slices = jax.tree.map(lambda x: x.reshape(count // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

            def accumulate(sums, part):
                (_, scalars), gradients = gradient(state["parameters"], frozen, part)
                return jax.tree.map(jnp.add, sums, (scalars, gradients)), None

            part_shape = jax.tree.map(lambda x: x[0], slices)
            (_, scalars), gradients = jax.eval_shape(gradient, state["parameters"], frozen, part_shape)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (scalars, gradients))
            sums, _ = jax.lax.scan(accumulate, zeros, slices)
            scalars, gradients = jax.tree.map(lambda x: x / parts, sums)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["parameters"])
        state = {"parameters": optax.apply_updates(state["parameters"], updates), "optimizer": optimizer_state}
        # Else the compiler may leave whole what comes divided, and nothing would be reused.
        return _divided(state, mesh), scalars | {"gradient_norm": optax.tree.norm(gradients)}

    return jax.jit(step, donate_argnums=0)


def _whole(tree, mesh: Mesh):
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def _divided(tree, mesh: Mesh):
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, parameter_sharding(x.shape, mesh)), tree)
