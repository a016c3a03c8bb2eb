"""The toon attribute oracle; needs what configs/toon_base.py made."""

from ml_collections import ConfigDict

from configs.toon_scorer import TOON_BASE
from hgdpo_jax.base_config import base_config


def get_config() -> ConfigDict:
    config = base_config()
    config.seed = 3
    config.stages = ("train_oracle",)
    config.weights.base = TOON_BASE
    with config.unlocked():
        config.oracle = ConfigDict(
            {
                "first_portrait": 300_000,
                "portraits": 6000,
                "batch_size": 64,
                "steps": 900,
                "learning_rate": 1e-3,
                "weight_decay": 0.01,
                "save_every": 200,
            }
        )
    return config
