"""The arithmetic that a training step needs at the least, whatever the step does."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from hgdpo_jax.families.model import Model
from hgdpo_jax.preflight.arithmetic import least_flops


def least_step_flops(
    base: Model,
    adapter: Any,
    *,
    pairs: int,
    latent_shape: tuple[int, int, int],
    clip_skip: int = 0,
    winners_alone: bool = False,
) -> float:
    """Operations that learning from so many pairs takes at the least; `adapter` may be shapes.

    The prompts once through the text encoder, the images once through the reference, and once through the policy with
    its gradient to activations and LoRA; learning from winners alone needs neither reference nor losers.
    """
    images = pairs if winners_alone else 2 * pairs
    inputs = (
        jax.ShapeDtypeStruct((images, *latent_shape), jnp.float32),
        jax.ShapeDtypeStruct((images,), jnp.int32),
        base.conditioning_shapes(images),
    )
    parameters = {name: base.parameters[name] for name in ("denoiser", "text")}

    def least(function, *arguments, tuned=0):
        """The first `tuned` arrays are those that are trained."""
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
        return least_flops(jaxpr, [place < tuned for place in range(len(jaxpr.invars))])

    def policy(adapter, *arguments):
        return base.prediction(*arguments, adapters=[(adapter, 1.0)])

    conditioning = least(functools.partial(base.condition, clip_skip=clip_skip), parameters, base.token_shapes(pairs))
    tuned = least(policy, adapter, parameters, *inputs, tuned=len(jax.tree.leaves(adapter)))
    return conditioning + tuned + (0.0 if winners_alone else least(base.prediction, parameters, *inputs))
