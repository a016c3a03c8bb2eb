"""N-20 with 4 times the regularisation: DPO's other way to keep the colours (Table 2)."""

from ml_collections import ConfigDict

from configs.n20 import get_config as n20_config


def get_config() -> ConfigDict:
    config = n20_config()
    config.dpo.beta *= 4
    return config
