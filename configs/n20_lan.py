"""N-20-LAN: N-20, sampled with latent adaptive normalisation (Eq. 7, Tables 2 and 3).

The LoRA is N-20's, trained again.
"""

from ml_collections import ConfigDict

from configs.n20 import get_config as n20_config


def get_config() -> ConfigDict:
    config = n20_config()
    config.sample.latent_normalization = True
    return config
