"""The held-out toon judge: another seed, width, part of the corpus and kind of damage than the scorer's."""

from ml_collections import ConfigDict

from configs.toon_base import add
from configs.toon_scorer import TOON_BASE
from hgdpo_jax.base_config import base_config
from hgdpo_jax.toon.settings import CLIPTraining, ScorerTraining


def get_config() -> ConfigDict:
    config = base_config()
    config.seed = 2
    config.weights.base = TOON_BASE
    config.stages = ("train_clip", "train_scorer")
    add(
        config,
        clip=CLIPTraining(first_portrait=200_000, steps=600),
        scorer_training=ScorerTraining(first_portrait=230_000, damage="JUDGE_DAMAGE"),
    )
    config.clip.vision.update(hidden_size=112, intermediate_size=448)
    config.clip.text.update(hidden_size=80, intermediate_size=320)
    return config
