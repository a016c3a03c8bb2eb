"""The toon preference scorer, which chooses the pairs; needs what configs/toon_base.py made."""

from ml_collections import ConfigDict

from configs.toon_base import clip_settings
from hgdpo_jax.base_config import base_config

TOON_BASE = "workdir/runs/toon_base/train_unet/base"


def get_config() -> ConfigDict:
    config = base_config()
    config.seed = 1
    config.weights.base = TOON_BASE
    config.stages = ("train_clip", "train_scorer")
    with config.unlocked():
        config.clip = clip_settings(first_portrait=100_000, steps=600)
        config.scorer_training = scorer_settings(first_portrait=130_000, damage="SCORER_DAMAGE")
    return config


def scorer_settings(first_portrait: int, damage: str) -> ConfigDict:
    """Preference training on portraits from `first_portrait` on, with one family of damage."""
    return ConfigDict(
        {
            # Steps of the base's training whose samples are the worse ones.
            "weaker_steps": (500, 1000),
            "first_portrait": first_portrait,
            "damage": damage,
            "portraits": 4000,
            "samples": 500,
            "batch_size": 48,
            "steps": 800,
            "learning_rate": 5e-4,
            "weight_decay": 0.05,
            # Weight of CLIP's own loss beside the preference loss.
            "contrastive_weight": 0.2,
            "save_every": 200,
        }
    )
