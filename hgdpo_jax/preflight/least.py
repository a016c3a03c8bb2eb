"""The least arithmetic that a training step needs, however it is implemented."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from hgdpo_jax.families.model import Model
from hgdpo_jax.objectives import Objective
from hgdpo_jax.preflight.arithmetic import least_flops


def least_step_flops(
    base: Model,
    adapter: Any,
    objective: Objective,
    *,
    rows: int,
    latent_shape: tuple[int, int, int],
    clip_skip: int = 0,
) -> float:
    """The fewest operations for learning from a number of rows; `adapter` may be shapes.

    The prompts pass once through the text encoder, and the objective's images once through the reference and once
    through the policy with its gradient to activations and LoRA.
    """
    parameters = {name: base.parameters[name] for name in ("denoiser", "text")}

    def inputs(images: int) -> tuple:
        noisy = jax.ShapeDtypeStruct((images, *latent_shape), jnp.float32)
        return noisy, jax.ShapeDtypeStruct((images,), jnp.int32), base.conditioning_shapes(images)

    def least(function, *arguments, tuned=0):
        """The fewest operations of a function whose first `tuned` arrays are trained."""
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
        return least_flops(jaxpr, [place < tuned for place in range(len(jaxpr.invars))])

    def policy(adapter, *arguments):
        return base.prediction(*arguments, adapters=[(adapter, 1.0)])

    conditioning = least(functools.partial(base.condition, clip_skip=clip_skip), parameters, base.token_shapes(rows))
    trained, compared = inputs(rows * objective.trained_images), inputs(rows * objective.reference_images)
    tuned = least(policy, adapter, parameters, *trained, tuned=len(jax.tree.leaves(adapter)))
    return conditioning + tuned + (least(base.prediction, parameters, *compared) if objective.reference_images else 0.0)
