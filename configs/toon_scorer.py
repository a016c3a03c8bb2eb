"""The toon preference scorer, which chooses the pairs; needs what configs/toon_base.py made."""

from ml_collections import ConfigDict

from configs.toon_base import add
from hgdpo_jax.base_config import base_config
from hgdpo_jax.toon.settings import CLIPTraining, ScorerTraining

TOON_BASE = "workdir/runs/toon_base/train_unet/base"


def get_config() -> ConfigDict:
    config = base_config()
    config.seed = 1
    config.weights.base = TOON_BASE
    config.stages = ("train_clip", "train_scorer")
    add(
        config,
        clip=CLIPTraining(first_portrait=100_000, steps=600),
        scorer_training=ScorerTraining(first_portrait=130_000, damage="SCORER_DAMAGE"),
    )
    return config
