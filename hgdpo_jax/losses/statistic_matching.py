"""The loss that prevents a colour shift."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def statistic_matching(
    policy_latents: Float[Array, "n h w c"], reference_latents: Float[Array, "n h w c"]
) -> Float[Array, " n"]:
    """Squared distance of the channel means of two latents, one value per image (HG-DPO, Eq. 8).

    The latents result from one sampler step from the same noisy winner, with the same sampler noise.
    """
    # The mean of the difference is exact, where the difference of two nearly equal means would cancel.
    shift = (policy_latents.astype(jnp.float32) - reference_latents.astype(jnp.float32)).mean(axis=(1, 2))
    return jnp.sum(shift**2, axis=-1)
