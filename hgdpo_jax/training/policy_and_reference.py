"""Predictions of policy and reference by identical arithmetic."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def policy_and_reference(predict: Callable[..., jax.Array], lora: Any, frozen: Any) -> tuple[jax.Array, jax.Array]:
    """`predict(lora, scale, frozen)` at scales 1 and 0; only the first has a gradient, and only for the LoRA.

    Both are iterations of one loop. XLA would compile two calls differently, because the gradient needs more of the
    first: it would omit other roundings and fuse other sums, which changes the last digits of bfloat16.
    """
    return _forward(predict, lora, frozen)[0]


def _forward(predict, lora, frozen):
    given = {id(leaf): leaf for leaf in jax.tree.leaves((lora, frozen))}
    structures = []

    def one_round(_, scale):
        prediction, pullback = jax.vjp(lambda lora: predict(lora, scale, frozen), lora)
        leaves, tree = jax.tree.flatten(pullback)
        # The weights are the same in both iterations; carrying them would copy them.
        places = [given.get(id(leaf)) for leaf in leaves]
        structures.append((tree, places))
        return [leaf for leaf, place in zip(leaves, places, strict=True) if place is None], prediction

    scales = jnp.array([0.0, 1.0])
    shapes, _ = jax.eval_shape(one_round, None, scales[0])
    nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    # Each iteration overwrites the residuals of the previous one, so that the policy's remain.
    kept, (reference, policy) = jax.lax.scan(one_round, nothing, scales)
    tree, places = structures[-1]
    rest = iter(kept)
    return (policy, reference), jax.tree.unflatten(tree, [next(rest) if x is None else x for x in places])


def _backward(_, pullback, gradients):
    return *pullback(gradients[0]), None


policy_and_reference.defvjp(_forward, _backward)
