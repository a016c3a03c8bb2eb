"""The arithmetic that a training step needs at the least, whatever the step does."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.preflight.arithmetic import least_flops


def least_step_flops(
    base: StableDiffusion,
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
    tokens, width = states_shape(base)
    inputs = (
        jax.ShapeDtypeStruct((images, *latent_shape), jnp.float32),
        jax.ShapeDtypeStruct((images,), jnp.int32),
        jax.ShapeDtypeStruct((images, tokens, width), jnp.float32),
    )
    token_ids = jax.ShapeDtypeStruct((pairs, tokens), jnp.int32)
    parameters = {name: base.parameters[name] for name in ("unet", "text_encoder")}

    def least(function, *arguments, tuned=0):
        """The first `tuned` arrays are those that are trained."""
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
        return least_flops(jaxpr, [place < tuned for place in range(len(jaxpr.invars))])

    def policy(adapter, *arguments):
        return base.prediction(*arguments, adapters=[(adapter, 1.0)])

    states = least(functools.partial(base.text_states, clip_skip=clip_skip), parameters, token_ids)
    tuned = least(policy, adapter, parameters, *inputs, tuned=len(jax.tree.leaves(adapter)))
    return states + tuned + (0.0 if winners_alone else least(base.prediction, parameters, *inputs))


def states_shape(base: StableDiffusion) -> tuple[int, int]:
    """Tokens of a prompt, and the width of their states."""
    config = base.text_encoder.config
    return config.max_position_embeddings, config.hidden_size
