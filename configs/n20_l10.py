"""N-20-L-10: the loser is the image with the tenth highest score (Table 5)."""

from ml_collections import ConfigDict

from configs.n20 import get_config as n20_config


def get_config() -> ConfigDict:
    config = n20_config()
    config.pairs.loser_rank = 10
    return config
