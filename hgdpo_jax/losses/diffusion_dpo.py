"""The preference loss of Diffusion-DPO."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def diffusion_dpo(
    policy_winner_error: Float[Array, " n"],
    policy_loser_error: Float[Array, " n"],
    reference_winner_error: Float[Array, " n"],
    reference_loser_error: Float[Array, " n"],
    *,
    beta: float,
) -> Float[Array, " n"]:
    """Low where the policy denoises winners better, and losers worse, than the reference (HG-DPO, Eq. 3).

    The errors are squared errors of the predicted noise, *averaged* over an image's latents as in diffusers' DPO
    example; for sums `beta` would have another scale. Both images of a pair share timestep and noise.
    """
    policy = policy_winner_error.astype(jnp.float32) - policy_loser_error.astype(jnp.float32)
    reference = reference_winner_error.astype(jnp.float32) - reference_loser_error.astype(jnp.float32)
    return -jax.nn.log_sigmoid(beta * (reference - policy))
