"""Matrix products of float32 in full precision on all hardware."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def precision_of(dtype: Any) -> contextlib.AbstractContextManager:
    """Context in which products and convolutions in float32 keep float32's precision; others are not changed.

    By default GPUs compute them in TF32 and TPUs in bfloat16. The precision is a property of each traced operation, so
    their derivatives have it too, except those of a `jax.custom_vjp`, which need a context of their own.
    """
    return jax.default_matmul_precision("highest") if dtype == jnp.float32 else contextlib.nullcontext()


def precise(method: Callable) -> Callable:
    """A module's method in the precision of the module's `dtype`; modules that have none compute in float32."""

    @functools.wraps(method)
    def call(module, *arguments, **keywords):
        with precision_of(getattr(module, "dtype", jnp.float32)):
            return method(module, *arguments, **keywords)

    return call
