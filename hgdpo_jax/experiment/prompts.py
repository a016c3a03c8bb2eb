"""The prompts of an experiment."""

from hgdpo_jax.artifacts import fingerprint_of
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.prompts import load_prompts


def train_prompts(experiment: Experiment) -> list[str]:
    """Prompts of the pool."""
    return load_prompts(experiment.prompts.train, experiment.prompts.train_count)


def validation_prompts(experiment: Experiment) -> list[str]:
    """Prompts that choose the best checkpoint."""
    return load_prompts(experiment.prompts.validation, experiment.prompts.validation_count)


def test_prompts(experiment: Experiment) -> list[str]:
    """Held-out prompts."""
    return load_prompts(experiment.prompts.test, experiment.prompts.test_count)


def prompts_fingerprint(prompts: list[str]) -> str:
    """Names prompts by their texts: a file may be edited, or lie elsewhere."""
    return fingerprint_of({"texts": prompts})
