"""Supervised fine-tuning on the winners of the pairs, which HG-DPO is compared with (Table 1)."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax import losses
from hgdpo_jax.diffusion.schedule import add_noise, training_target
from hgdpo_jax.families.model import Model
from hgdpo_jax.objectives import Objective


@dataclasses.dataclass(frozen=True)
class SFT(Objective):
    """Predicts the noise in the winner and never sees the loser."""

    rows: ClassVar[str] = "pair"
    trained_images: ClassVar[int] = 1
    reference_images: ClassVar[int] = 0

    def losses(
        self, model: Model, lora: dict, base: dict, batch: dict[str, Any], conditioning: Any
    ) -> dict[str, Float[Array, "n"]]:
        """Noise prediction on each pair's winner, one float32 value per pair."""
        winners = batch["winner_latents"].astype(jnp.float32)
        drawn = winners, batch["noise"], batch["timesteps"]
        noisy = add_noise(model.schedule, *drawn)
        predicted = model.prediction(base, noisy, batch["timesteps"], conditioning, adapters=[(lora, 1.0)])
        error = losses.noise_prediction(predicted, training_target(model.schedule, *drawn))
        return {"loss": error, "policy_winner_error": error}
