"""N-20-L-2: the loser is the image with the second highest score (Table 5)."""

from ml_collections import ConfigDict

from configs.n20 import get_config as n20_config


def get_config() -> ConfigDict:
    config = n20_config()
    config.pairs.loser_rank = 2
    return config
