"""N-20 with 2,000 prompts, and so 2,000 pairs at most (Table 6).

As many training steps as with 100,000: the paper does not say how many, and only the data should differ.
"""

from ml_collections import ConfigDict

from configs.n20 import get_config as n20_config


def get_config() -> ConfigDict:
    config = n20_config()
    config.prompts.train_count = 2_000
    return config
