"""Losses: pure functions of arrays, one float32 value per pair or image."""

from hgdpo_jax.losses.contrastive import contrastive
from hgdpo_jax.losses.diffusion_dpo import diffusion_dpo
from hgdpo_jax.losses.noise_prediction import noise_prediction
from hgdpo_jax.losses.preference import preference
from hgdpo_jax.losses.statistic_matching import statistic_matching

__all__ = ["contrastive", "diffusion_dpo", "noise_prediction", "preference", "statistic_matching"]
