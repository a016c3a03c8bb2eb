"""The loss that keeps a policy from shifting colours."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def statistic_matching(
    policy_latents: Float[Array, "n h w c"], reference_latents: Float[Array, "n h w c"]
) -> Float[Array, " n"]:
    """Squared distance of the channel means of two latents, one value an image (HG-DPO, Eq. 8).

    The latents are those that one sampler step from the same noisy winner, with the same sampler noise, leads to.
    """
    # The mean of the difference, because the means of two nearly equal latents would cancel.
    shift = (policy_latents.astype(jnp.float32) - reference_latents.astype(jnp.float32)).mean(axis=(1, 2))
    return jnp.sum(shift**2, axis=-1)
