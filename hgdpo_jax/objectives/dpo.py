"""Diffusion-DPO with statistic matching, the method of HG-DPO (Eq. 9)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hgdpo_jax import losses
from hgdpo_jax.families.model import Model
from hgdpo_jax.objectives import Chart, Objective
from hgdpo_jax.settings import setting
from hgdpo_jax.training.pair_errors import pair_errors

# Of every objective that compares policy and reference on pairs.
PAIR_CHARTS = (
    Chart(
        "Implicit accuracy",
        "Share of pairs leaning to the winner.",
        {"implicit_accuracy": "training pairs"},
        0.5,
        percent=True,
    ),
    Chart(
        "Margin",
        "Implicit reward, winner less loser.",
        {"margin": "training pairs"},
        0.0,
    ),
    Chart(
        "Noise prediction error",
        "Dashes: the reference on the same noise.",
        {
            "policy_winner_error": "winner",
            "policy_loser_error": "loser",
            "reference_winner_error": "winner, reference",
            "reference_loser_error": "loser, reference",
        },
    ),
    Chart(
        "Error against the reference",
        "Policy minus reference, by image.",
        {"winner_error_change": "winner", "loser_error_change": "loser"},
        0.0,
    ),
)


@dataclasses.dataclass(frozen=True)
class DPO(Objective):
    """Learns from winner and loser."""

    # Regularisation beta of Diffusion-DPO (Eq. 3) on errors averaged over the latent.
    beta: float = 2500.0
    # Weight lambda_stat of statistic matching (Eq. 8 and 9); 0: DPO alone.
    statistic_weight: float = 10000.0
    # Noise steps that statistic matching goes back: 1 as the paper writes, 20 as one of 50 sampler steps.
    statistic_stride: int = setting(1, least=1)

    rows: ClassVar[str] = "pair"
    trained_images: ClassVar[int] = 2
    reference_images: ClassVar[int] = 2
    charts: ClassVar[Sequence[Chart]] = (
        Chart(
            "DPO loss", "Dotted: log 2, where training starts.", {"dpo_loss": "DPO term", "loss": "total"}, np.log(2)
        ),
        Chart("Statistic matching loss", "Squared distance of channel means.", {"statistic_loss": "statistic term"}),
        *PAIR_CHARTS,
    )

    def losses(
        self, model: Model, lora: dict, base: dict, batch: dict[str, Any], conditioning: Any
    ) -> dict[str, Float[Array, "n"]]:
        """The terms of Eq. 9, and how far policy and reference differ, one value a pair."""
        pairs = pair_errors(model, lora, base, batch, conditioning)
        dpo_loss = losses.diffusion_dpo(**pairs.errors, beta=self.beta)
        statistic_loss = self.statistic_weight * pairs.statistic_loss(self.statistic_stride)
        margin = self.beta * pairs.margin
        return {
            "loss": dpo_loss + statistic_loss,
            "dpo_loss": dpo_loss,
            "statistic_loss": statistic_loss,
            "implicit_accuracy": (margin > 0).astype(jnp.float32),
            "margin": margin,
            **pairs.errors,
        }
