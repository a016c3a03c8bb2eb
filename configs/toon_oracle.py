"""The toon attribute oracle; needs what configs/toon_base.py made."""

from ml_collections import ConfigDict

from configs.toon_base import add
from configs.toon_scorer import TOON_BASE
from hgdpo_jax.base_config import base_config
from hgdpo_jax.toon.settings import OracleTraining


def get_config() -> ConfigDict:
    config = base_config()
    config.seed = 3
    config.stages = ("train_oracle",)
    config.weights.base = TOON_BASE
    add(config, oracle=OracleTraining())
    return config
