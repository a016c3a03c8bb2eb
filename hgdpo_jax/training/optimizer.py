"""The optimiser of every training stage."""

import jax
import jax.numpy as jnp
import optax


def make_optimizer(
    *,
    learning_rate: float,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    weight_decay: float = 0.0,
    max_gradient_norm: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999) with linear warm-up; then constant, or a cosine to zero over `decay_steps` where given.

    Gradients are clipped to `max_gradient_norm` where it is above zero.
    """
    if decay_steps:
        schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, decay_steps)
    elif warmup_steps:
        schedule = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
    else:
        schedule = optax.constant_schedule(learning_rate)
    clip = optax.clip_by_global_norm(max_gradient_norm) if max_gradient_norm else optax.identity()
    return optax.chain(clip, optax.adamw(schedule, b1=0.9, b2=0.999, weight_decay=weight_decay))


def update_average(average, parameters, step: jax.Array, decay: float):
    """Exponential moving average of the parameters; its memory grows at first, so that the start leaves no trace."""
    share = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + share * (p - a), average, parameters)
