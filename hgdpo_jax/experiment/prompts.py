"""The prompts of an experiment."""

from hgdpo_jax.artifacts import fingerprint_of
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.prompts import load_prompts

# Test prompts that are drawn for viewing.
_SAMPLED = 8


def train_prompts(experiment: Experiment) -> list[str]:
    """Prompts of the pool."""
    return _load(experiment, "train")


def validation_prompts(experiment: Experiment) -> list[str]:
    """Prompts that choose the best checkpoint."""
    return _load(experiment, "validation")


def test_prompts(experiment: Experiment) -> list[str]:
    """Held-out prompts."""
    return _load(experiment, "test")


def number_of_prompts(experiment: Experiment, use: str) -> int:
    """How many "train", "validation" or "test" prompts there are; without a source, as many as are configured."""
    return (
        len(_load(experiment, use)) if getattr(experiment.prompts, use) else getattr(experiment.prompts, f"{use}_count")
    )


def sampled_prompts(experiment: Experiment) -> list[str]:
    """Prompts that are drawn for viewing: the experiment's own, or the first test prompts."""
    return list(experiment.sample.prompts) or test_prompts(experiment)[:_SAMPLED]


def sampled_count(experiment: Experiment) -> int:
    """How many prompts `sampled_prompts` has."""
    return len(experiment.sample.prompts) or min(_SAMPLED, number_of_prompts(experiment, "test"))


def prompts_fingerprint(prompts: list[str]) -> str:
    """Names prompts by their texts: a file may be edited, or lie elsewhere."""
    return fingerprint_of({"texts": prompts})


def _load(experiment: Experiment, name: str) -> list[str]:
    source, count = getattr(experiment.prompts, name), getattr(experiment.prompts, f"{name}_count")
    return load_prompts(source, count, f"config.prompts.{name}")
