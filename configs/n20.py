"""N-20: pools of 20 images, DPO alone (Table 3)."""

from ml_collections import ConfigDict

from configs.n20_sml import get_config as n20_sml_config


def get_config() -> ConfigDict:
    config = n20_sml_config()
    config.dpo.statistic_weight = 0.0
    return config
