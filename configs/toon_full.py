"""The toon experiment with enough prompts and images for a clear result: about half an hour on two cores."""

from ml_collections import ConfigDict

from configs.toon import get_config as toon_config


def get_config() -> ConfigDict:
    config = toon_config()
    config.prompts.train_count = 1024
    config.prompts.test_count = 200
    config.pool.size = 12
    config.train.steps = 500
    config.train.evaluate_every = 100
    config.train.checkpoint_every = 50
    config.evaluate.seeds = 4
    return config
