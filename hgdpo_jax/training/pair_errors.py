"""Denoising errors of policy and reference on the images of preference pairs, from two calls of the denoiser."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax import losses
from hgdpo_jax.diffusion import ddpm
from hgdpo_jax.diffusion.schedule import NoiseSchedule, add_noise, training_target
from hgdpo_jax.families.model import Model
from hgdpo_jax.training.policy_and_reference import policy_and_reference


@dataclasses.dataclass(frozen=True)
class PairErrors:
    """Mean squared errors of winners and losers, one value per pair, named as in losses and logs."""

    errors: dict[str, Float[Array, "n"]]
    _schedule: NoiseSchedule
    _noisy_winners: Float[Array, "n h w c"]
    _timesteps: Any
    _winner_predictions: tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]

    @property
    def margin(self) -> Float[Array, "n"]:
        """The implicit reward: how much more the policy improves on the reference for winners than for losers."""
        errors = self.errors
        return (errors["reference_winner_error"] - errors["policy_winner_error"]) - (
            errors["reference_loser_error"] - errors["policy_loser_error"]
        )

    def statistic_loss(self, stride: int) -> Float[Array, "n"]:
        """Statistic matching of policy and reference after one sampler step from the noisy winners (HG-DPO, Eq. 8)."""
        # The sampler's noise is the same for both models and cancels in the difference of their means.
        policy_step, reference_step = (
            ddpm.step(self._schedule, predicted, self._timesteps, self._noisy_winners, noise=None, stride=stride)
            for predicted in self._winner_predictions
        )
        return losses.statistic_matching(policy_step, reference_step)


def pair_errors(model: Model, lora: dict, base: dict, batch: dict[str, Any], conditioning: Any) -> PairErrors:
    """The errors on a batch of pairs.

    `batch` has `winner_latents` and `loser_latents` `[n, h, w, c]`, and `timesteps` `[n]` and `noise` `[n, h, w, c]`,
    which the two images of a pair share. The denoiser runs once with the LoRA and once without it, on interleaved
    winners and losers.
    """
    winners = batch["winner_latents"].astype(jnp.float32)
    losers = batch["loser_latents"].astype(jnp.float32)
    noise, timesteps = batch["noise"], batch["timesteps"]
    noisy_winners = add_noise(model.schedule, winners, noise, timesteps)
    noisy_losers = add_noise(model.schedule, losers, noise, timesteps)
    both = jax.tree.map(_interleaved, conditioning, conditioning)
    inputs = _interleaved(noisy_winners, noisy_losers), _interleaved(timesteps, timesteps), both
    # The type in which the base is stored is the one in which it computes.
    if jax.tree.leaves(base["denoiser"])[0].dtype == jnp.bfloat16:

        def predict(lora, scale, frozen):
            base, inputs = frozen
            return model.prediction(base, *inputs, adapters=[(lora, scale)])

        policy, reference = policy_and_reference(predict, lora, (base, inputs))
    else:
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
    return PairErrors(errors, model.schedule, noisy_winners, timesteps, (policy_winner, reference_winner))


def _interleaved(first: Float[Array, "n ..."], second: Float[Array, "n ..."]) -> Float[Array, "2n ..."]:
    """Interleaves rows, so that a pair stays on its device; concatenated halves would move every row."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _sides(rows: Float[Array, "2n ..."]) -> tuple[Float[Array, "n ..."], Float[Array, "n ..."]]:
    """The inverse of `_interleaved`."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, 0], pairs[:, 1]
