"""IPO on denoising errors: regression of the margin to a finite target, in place of DPO's logistic loss."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax.families.model import Model
from hgdpo_jax.objectives import Chart, Objective
from hgdpo_jax.objectives.dpo import PAIR_CHARTS
from hgdpo_jax.settings import setting
from hgdpo_jax.training.pair_errors import pair_errors


def ipo(margin: Float[Array, " n"], *, beta: float) -> Float[Array, " n"]:
    """(beta m - 1/2)^2, one value a pair (Azar et al. 2023, Eq. 17, times beta^2).

    Unscaled, (m - 1 / (2 beta))^2, its gradient would vanish beside every other term of a loss.
    """
    return (beta * margin.astype(jnp.float32) - 0.5) ** 2


@dataclasses.dataclass(frozen=True)
class IPO(Objective):
    """Learns from winner and loser, and pulls back pairs that are told apart by more than the target."""

    # The margin's target is 1 / (2 beta), on errors averaged over the latent (no published value for diffusion models).
    beta: float = 2500.0
    # Weight of statistic matching, as dpo.statistic_weight; 0: IPO alone.
    statistic_weight: float = 10000.0
    # Noise steps that statistic matching goes back, as dpo.statistic_stride.
    statistic_stride: int = setting(1, least=1)

    rows: ClassVar[str] = "pair"
    trained_images: ClassVar[int] = 2
    reference_images: ClassVar[int] = 2
    charts: ClassVar[Sequence[Chart]] = (
        Chart("IPO loss", "Dotted: 1/4, where training starts.", {"ipo_loss": "IPO term"}, 0.25),
        *PAIR_CHARTS,
    )

    def losses(
        self, model: Model, lora: dict, base: dict, batch: dict[str, Any], conditioning: Any
    ) -> dict[str, Float[Array, "n"]]:
        """The loss and its terms, and how far policy and reference differ, one value a pair."""
        pairs = pair_errors(model, lora, base, batch, conditioning)
        ipo_loss = ipo(pairs.margin, beta=self.beta)
        statistic_loss = self.statistic_weight * pairs.statistic_loss(self.statistic_stride)
        return {
            "loss": ipo_loss + statistic_loss,
            "ipo_loss": ipo_loss,
            "statistic_loss": statistic_loss,
            "implicit_accuracy": (pairs.margin > 0).astype(jnp.float32),
            "margin": self.beta * pairs.margin,
            **pairs.errors,
        }
