"""Diffusion-DPO with statistic matching, the method of HG-DPO (Eq. 9)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from hgdpo_jax import losses
from hgdpo_jax.objectives import Chart, PairObjective
from hgdpo_jax.training.pair_errors import PairErrors


@dataclasses.dataclass(frozen=True)
class DPO(PairObjective):
    """Classifies which image of a pair is the winner; `beta` is Eq. 3's."""

    charts: ClassVar[Sequence[Chart]] = (
        Chart(
            "DPO loss",
            "The total adds statistic matching. Dotted: log 2, where training starts.",
            {"dpo_loss": "DPO term", "loss": "total"},
            np.log(2),
        ),
        *PairObjective.charts,
    )

    def pair_loss(self, pairs: PairErrors) -> Float[Array, "n"]:
        """Eq. 3, one value per pair."""
        return losses.diffusion_dpo(**pairs.errors, beta=self.beta)
