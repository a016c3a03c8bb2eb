"""A row of the paper's tables in miniature, on toon portraits: --config=configs/toon_ablations.py:ROW-SEED.

ROW is one of the paper's experiments, a file in configs/, whose differences count here; SEED is that of training. All
rows share one pool and one recipe, which was chosen on the validation prompts.
"""

import importlib

from ml_collections import ConfigDict

from configs.toon import get_config as toon_config
from hgdpo_jax.base_config import base_config

PROMPTS = 384
_PAPERS_PROMPTS = 100_000


def get_config(row: str = "n20_sml-0") -> ConfigDict:
    name, _, seed = row.partition("-")
    paper = importlib.import_module(f"configs.{name}").get_config()
    config = toon_config()
    config.name = row
    config.train.seed = int(seed or 0)
    config.pool.size = paper.pool.size
    config.pairs.loser_rank = paper.pairs.loser_rank
    config.objective = paper.objective
    config.dpo.update(paper.dpo)
    if config.dpo.statistic_weight:
        # As one of 50 sampler steps: back to the step before, as the paper is worded, the loss is too weak to be seen
        # in so short a training.
        config.dpo.statistic_stride = 20
    config.sample.latent_normalization = paper.sample.latent_normalization
    config.prompts.train_count = round(PROMPTS * paper.prompts.train_count / _PAPERS_PROMPTS)
    config.prompts.test_count = 320
    # The last step counts: choosing the best one by the scorer would be a recipe for each row.
    config.train.evaluate_every = config.train.steps
    config.prompts.validation_count = 64
    config.evaluate.seeds = 2
    if name == "n20":
        # N-20-LAN is N-20's LoRA, sampled in another way.
        config.evaluate.models = ("base", "tuned", "tuned+lan")
    config.stages = tuple(stage for stage in base_config().stages if stage != "sample_images")
    return config
