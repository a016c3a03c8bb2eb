"""SFT on the winners of N-20's pairs, which DPO on the same pairs is compared with (Table 1)."""

from ml_collections import ConfigDict

from configs.n20 import get_config as n20_config


def get_config() -> ConfigDict:
    config = n20_config()
    config.objective = "sft"
    return config
