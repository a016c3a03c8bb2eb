"""The loss of a preference scorer."""

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Float


def preference(
    first_score: Float[Array, " n"], second_score: Float[Array, " n"], first_preferred: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Divergence of softmax(scores) from a preference, one value per pair (PickScore, Kirstain et al. 2023, Eq. 2).

    `first_preferred` is the probability that people prefer the first image: 1, 0, or 0.5 for a tie.
    """
    margin = first_score.astype(jnp.float32) - second_score.astype(jnp.float32)
    label = first_preferred.astype(jnp.float32)
    cross_entropy = -label * jax.nn.log_sigmoid(margin) - (1 - label) * jax.nn.log_sigmoid(-margin)
    return cross_entropy - entr(label) - entr(1 - label)
