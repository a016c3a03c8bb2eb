"""HG-DPO on 500 prompts with 8 images each: a first run, one five-hundredth of the paper's pool."""

from ml_collections import ConfigDict

from configs.n20_sml import get_config as n20_sml_config


def get_config() -> ConfigDict:
    config = n20_sml_config()
    config.prompts.train_count = 500
    config.pool.size = 8
    # Every pair 20 times.
    config.train.steps = 625
    config.train.warmup_steps = 50
    config.train.evaluate_every = 125
    return config
