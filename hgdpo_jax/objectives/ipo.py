"""IPO on denoising errors: regression of the margin to a finite target, in place of DPO's logistic loss."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax.objectives import Chart, PairObjective
from hgdpo_jax.training.pair_errors import PairErrors


def ipo(margin: Float[Array, " n"], *, beta: float) -> Float[Array, " n"]:
    """(beta m - 1/2)^2, one value per pair (Azar et al. 2023, Eq. 17, times beta^2).

    Unscaled, (m - 1 / (2 beta))^2, its gradient would vanish beside every other term of a loss.
    """
    return (beta * margin.astype(jnp.float32) - 0.5) ** 2


@dataclasses.dataclass(frozen=True)
class IPO(PairObjective):
    """Moves each pair's margin to 1 / (2 beta), also from beyond it (no published beta for diffusion models)."""

    charts: ClassVar[Sequence[Chart]] = (
        Chart("IPO loss", "Dotted: 1/4, where training starts.", {"ipo_loss": "IPO term"}, 0.25),
        *PairObjective.charts,
    )

    def pair_loss(self, pairs: PairErrors) -> Float[Array, "n"]:
        """The squared distance from the target, one value per pair."""
        return ipo(pairs.margin, beta=self.beta)
