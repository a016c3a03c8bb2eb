"""The optimiser of all training stages."""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from hgdpo_jax.training.adam_8bit import scale_by_adam_8bit


def make_optimizer(
    *,
    learning_rate: float | jax.Array,
    warmup_steps: int | jax.Array = 0,
    decay_steps: int = 0,
    weight_decay: float | jax.Array = 0.0,
    max_gradient_norm: float | jax.Array = 0.0,
    adam_bits: int = 32,
) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999) with linear warm-up, then a constant rate, or a cosine to zero at step `decay_steps` if given.

    Gradients are clipped to `max_gradient_norm` if it is not zero. Moments have 32 bits per element, or 8 with
    `scale_by_adam_8bit`. Without `decay_steps`, all numbers but `adam_bits` may be arguments of a compiled program; the
    structure of the optimiser's state does not depend on them.
    """
    if decay_steps:
        schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, decay_steps)
    else:
        schedule = functools.partial(_warmed_up, learning_rate, warmup_steps)
    clip = optax.clip_by_global_norm(jnp.where(max_gradient_norm, max_gradient_norm, jnp.inf))
    scale_by_adam = {8: scale_by_adam_8bit, 32: optax.scale_by_adam}[adam_bits]
    # optax.adamw does not accept another Adam.
    adamw = optax.chain(
        scale_by_adam(b1=0.9, b2=0.999),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.chain(clip, adamw)


def _warmed_up(
    learning_rate: float | jax.Array, warmup_steps: int | jax.Array, count: Int[Array, ""]
) -> Float[Array, ""]:
    """`optax.linear_schedule` from the first step's share of the rate, whose number of steps must be static."""
    steps = jnp.maximum(warmup_steps, 1)
    first = learning_rate / steps
    left = 1 - jnp.clip(count, 0, steps - 1) / jnp.maximum(steps - 1, 1)
    return (first - learning_rate) * left + learning_rate


def update_average(average, parameters, step: jax.Array, decay: float):
    """Exponential moving average of the parameters; a decay that grows at first lets the initial values fade."""
    share = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + share * (p - a), average, parameters)
