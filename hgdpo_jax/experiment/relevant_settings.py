"""The settings that the stages of an experiment read, for its report."""

from typing import Any

from hgdpo_jax.artifacts import flat
from hgdpo_jax.base_config import Experiment, plain

# The stages that read a section, or one of its settings, where not every experiment does.
_READERS = {
    "prompts.train": ("generate_pool",),
    "prompts.train_count": ("generate_pool",),
    "prompts.validation": ("train_policy",),
    "prompts.validation_count": ("train_policy",),
    "pool.size": ("generate_pool",),
    "pairs": ("select_pairs",),
    "adapter.rank": ("train_policy",),
    "objective": ("train_policy",),
    "train": ("train_policy",),
    "finetune": ("encode_images", "finetune_base"),
    "sample.prompts": ("sample_images",),
    "sample.seeds": ("sample_images",),
    "sweep": ("sweep_scale",),
    "preflight": ("preflight",),
}


def relevant_settings(experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings by their dotted names: those that differ from their defaults, and those that do not.

    Leaves out what no stage of the experiment reads, and defaults that are empty.
    """
    readers = _READERS | {experiment.objective.name(): _READERS["objective"]}

    def is_read(name: str) -> bool:
        stages = readers.get(name) or readers.get(name.partition(".")[0])
        return stages is None or bool({*stages} & {*experiment.stages})

    sections = {name: type(section)() for name, section in experiment.extra.items()}
    defaults = flat(plain(Experiment(objective=type(experiment.objective)(), extra=sections)))
    defaults["objective"] = Experiment().objective.name()
    found = {name: value for name, value in flat(plain(experiment)).items() if is_read(name)}
    changed = {name: value for name, value in found.items() if value != defaults[name]}
    unchanged = {name: value for name, value in found.items() if name not in changed and value not in ("", ())}
    return changed, unchanged
