"""Every stage of the toon experiment once, in about a minute: for tests of the machinery, not of the method."""

from ml_collections import ConfigDict

from configs.toon import get_config as toon_config


def get_config() -> ConfigDict:
    config = toon_config()
    config.prompts.train_count = 24
    config.prompts.validation_count = 8
    config.prompts.test_count = 8
    config.pool.size = 3
    config.pool.steps = 4
    config.pool.block = 8
    config.pool.device_batch = 4
    config.scoring.device_batch = 4
    config.train.batch_size = 8
    config.train.device_batch = 4
    config.train.steps = 12
    config.train.evaluate_every = 6
    config.train.checkpoint_every = 3
    config.sample.seeds = 1
    config.evaluate.seeds = 1
    return config
