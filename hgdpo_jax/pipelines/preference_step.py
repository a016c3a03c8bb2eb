"""The loss of HG-DPO on preference pairs, from two calls of the denoiser."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax import losses
from hgdpo_jax.diffusion import ddpm
from hgdpo_jax.diffusion.schedule import add_noise, training_target
from hgdpo_jax.families.model import Model


def pair_losses(
    model: Model,
    lora: dict,
    base: dict,
    batch: dict[str, Any],
    *,
    beta: float,
    statistic_weight: float,
    statistic_stride: int,
    clip_skip: int = 0,
) -> dict[str, Float[Array, "n"]]:
    """Losses and what explains them, one float32 value a pair (HG-DPO, Eq. 9).

    `batch` holds `winner_latents` and `loser_latents` `[n, h, w, c]`, `tokens` of the prompts, and for each pair one
    `timesteps` `[n]` and one `noise` `[n, h, w, c]`, shared by its two images. The denoiser runs once with the LoRA and
    once without on winners and losers in turn; the statistic loss reuses both predictions. `clip_skip` layers of the
    text encoder are skipped.
    """
    winners = batch["winner_latents"].astype(jnp.float32)
    losers = batch["loser_latents"].astype(jnp.float32)
    noise, timesteps = batch["noise"], batch["timesteps"]
    noisy_winners = add_noise(model.schedule, winners, noise, timesteps)
    noisy_losers = add_noise(model.schedule, losers, noise, timesteps)
    conditioning = model.condition(base, batch["tokens"], clip_skip)
    both = jax.tree.map(_in_turn, conditioning, conditioning)
    inputs = _in_turn(noisy_winners, noisy_losers), _in_turn(timesteps, timesteps), both
    policy = model.prediction(base, *inputs, adapters=[(lora, 1.0)])
    reference = jax.lax.stop_gradient(model.prediction(base, *inputs))
    policy_winner, policy_loser = _sides(policy)
    reference_winner, reference_loser = _sides(reference)
    winner_target = training_target(model.schedule, winners, noise, timesteps)
    loser_target = training_target(model.schedule, losers, noise, timesteps)
    errors = {
        "policy_winner_error": losses.noise_prediction(policy_winner, winner_target),
        "policy_loser_error": losses.noise_prediction(policy_loser, loser_target),
        "reference_winner_error": losses.noise_prediction(reference_winner, winner_target),
        "reference_loser_error": losses.noise_prediction(reference_loser, loser_target),
    }
    dpo_loss = losses.diffusion_dpo(**errors, beta=beta)
    # The sampler's own noise, shared by both models, cancels in the difference of their means.
    policy_step, reference_step = (
        ddpm.step(model.schedule, predicted, timesteps, noisy_winners, noise=None, stride=statistic_stride)
        for predicted in (policy_winner, reference_winner)
    )
    statistic_loss = losses.statistic_matching(policy_step, reference_step)
    margin = beta * (
        (errors["reference_winner_error"] - errors["policy_winner_error"])
        - (errors["reference_loser_error"] - errors["policy_loser_error"])
    )
    return {
        "loss": dpo_loss + statistic_weight * statistic_loss,
        "dpo_loss": dpo_loss,
        "statistic_loss": statistic_weight * statistic_loss,
        "implicit_accuracy": (margin > 0).astype(jnp.float32),
        "margin": margin,
        **errors,
    }


def _in_turn(first: Float[Array, "n ..."], second: Float[Array, "n ..."]) -> Float[Array, "2n ..."]:
    """Rows of both in turn: a pair stays on its device, where one half behind the other would move every row."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _sides(rows: Float[Array, "2n ..."]) -> tuple[Float[Array, "n ..."], Float[Array, "n ..."]]:
    """The two that `_in_turn` joined."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, 0], pairs[:, 1]
