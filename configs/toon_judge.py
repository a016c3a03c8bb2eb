"""The held-out toon judge: another seed, width, part of the corpus and kind of damage than the scorer's."""

from ml_collections import ConfigDict

from configs.toon_base import clip_settings
from configs.toon_scorer import TOON_BASE, scorer_settings
from hgdpo_jax.base_config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.seed = 2
    config.weights.base = TOON_BASE
    config.stages = ("train_clip", "train_scorer")
    with config.unlocked():
        config.clip = clip_settings(first_portrait=200_000, steps=600)
        config.clip.vision.hidden_size = 112
        config.clip.vision.intermediate_size = 448
        config.clip.text.hidden_size = 80
        config.clip.text.intermediate_size = 320
        config.scorer_training = scorer_settings(first_portrait=230_000, damage="JUDGE_DAMAGE")
    return config
