"""Training steps that accumulate gradients over parts of a batch, for batches that do not fit in memory at once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hgdpo_jax.sharding import parameter_sharding


def accumulation_steps(batch_size: int, device_batch: int, devices: int) -> int:
    """The fewest equal parts of a batch that give each device at most `device_batch` rows of a part."""
    share = batch_size // devices
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= device_batch)


def make_accumulating_step(
    losses: Callable[[Any, Any, Any], dict[str, jax.Array]],
    optimizer: optax.GradientTransformation,
    draw: Callable[[Any, jax.Array], Any],
    parts: int,
    mesh: Mesh,
):
    """Compiles `accumulating_step`, whose state's buffers are donated."""
    return jax.jit(accumulating_step(losses, optimizer, draw, parts, mesh), donate_argnums=0)


def with_numbers(make_step: Callable[[Any], Callable], numbers: Any) -> functools.partial:
    """Compiles the step `make_step(numbers)`, with the numbers as arguments of the program and not constants in it.

    So one program serves all values. `numbers` is a tree of Python's numbers, which have no precision of their own, as
    in eager code; `make_step` sees tracers and must not ask for their values. The state's buffers are donated.
    """

    def step(state, frozen, batch, key, numbers):
        return make_step(numbers)(state, frozen, batch, key)

    return functools.partial(jax.jit(step, donate_argnums=0), numbers=numbers)


def accumulating_step(
    losses: Callable[[Any, Any, Any], dict[str, jax.Array]],
    optimizer: optax.GradientTransformation,
    draw: Callable[[Any, jax.Array], Any],
    parts: int,
    mesh: Mesh,
):
    """A step `(state, frozen, batch, key) -> (state, scalars)`; gradients of `parts` slices are averaged.

    `losses(parameters, frozen, batch)` returns named arrays with one value per row. Training minimises the mean of
    "loss"; the scalars are all means. `draw(batch, key)` adds random values to the whole batch, one per row, so that
    they do not depend on `parts`. The state has `parameters` and `optimizer`. Parameters that are sharded over the
    mesh's "fsdp" axis are gathered for the loss, and their gradients are sharded likewise.
    """

    def gradient(parameters, frozen, batch):
        def loss(parameters):
            values = losses(_gathered(parameters, mesh), _gathered(frozen, mesh), batch)
            means = {name: value.mean() for name, value in values.items()}
            return means["loss"], means

        gradients, means = jax.grad(loss, has_aux=True)(parameters)
        return means, _sharded(gradients, mesh)

    def step(state, frozen, batch, key):
        batch = draw(batch, key)
        if parts == 1:
            scalars, gradients = gradient(state["parameters"], frozen, batch)
        else:
            count = jax.tree.leaves(batch)[0].shape[0]
            # Strided slices, so that each part is sharded over all devices like the batch.
            slices = jax.tree.map(lambda x: x.reshape(count // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

            def accumulate(sums, part):
                return jax.tree.map(jnp.add, sums, gradient(state["parameters"], frozen, part)), None

            first = jax.tree.map(lambda x: x[0], slices)
            shapes = jax.eval_shape(gradient, state["parameters"], frozen, first)
            zeros = jax.tree.map(jnp.zeros_like, shapes)
            sums, _ = jax.lax.scan(accumulate, zeros, slices)
            scalars, gradients = jax.tree.map(lambda x: x / parts, sums)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["parameters"])
        state = {"parameters": optax.apply_updates(state["parameters"], updates), "optimizer": optimizer_state}
        # Otherwise XLA may replicate sharded outputs, which prevents buffer donation.
        return _sharded(state, mesh), scalars | {"gradient_norm": optax.tree.norm(gradients)}

    return step


def _gathered(tree, mesh: Mesh):
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def _sharded(tree, mesh: Mesh):
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, parameter_sharding(x.shape, mesh)), tree)
