"""N-5: pools of 5 images, DPO alone (Table 3)."""

from ml_collections import ConfigDict

from configs.n20 import get_config as n20_config


def get_config() -> ConfigDict:
    config = n20_config()
    config.pool.size = 5
    return config
