"""Supervised fine-tuning on the winners of the pairs, which HG-DPO is compared with."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax import losses
from hgdpo_jax.diffusion.schedule import add_noise, training_target
from hgdpo_jax.families.model import Model


def winner_losses(
    model: Model, lora: dict, base: dict, batch: dict[str, Any], *, clip_skip: int = 0
) -> dict[str, Float[Array, "n"]]:
    """Noise prediction on each pair's winner, one float32 value a pair (HG-DPO, Table 1: SFT on the winners).

    `batch` is that of `pair_losses`; its losers are not looked at.
    """
    winners = batch["winner_latents"].astype(jnp.float32)
    noisy = add_noise(model.schedule, winners, batch["noise"], batch["timesteps"])
    conditioning = model.condition(base, batch["tokens"], clip_skip)
    predicted = model.prediction(base, noisy, batch["timesteps"], conditioning, adapters=[(lora, 1.0)])
    target = training_target(model.schedule, winners, batch["noise"], batch["timesteps"])
    error = losses.noise_prediction(predicted, target)
    return {"loss": error, "policy_winner_error": error}
