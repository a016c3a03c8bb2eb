"""Settings as typed values, and what they decide."""

import importlib

import pytest
from PIL import Image

from hgdpo_jax.base_config import Experiment, base_config, typed
from hgdpo_jax.errors import UserError
from hgdpo_jax.settings import leaves

STAGES = ("generate_pool", "score_pool", "select_pairs", "check_pairs", "train_policy", "sample_images")
STAGES += ("evaluate_policy", "sweep_scale", "encode_images", "finetune_base")


# Every field that decides results, by its name in a config.
DECISIVE = {
    name.replace("objective.", "dpo."): value
    for name, field, value in leaves(Experiment())
    if field.metadata.get("decides", True) and name != "extra"
} | {"objective": "sft"}


@pytest.fixture(scope="module")
def config(tiny_base, tiny_scorer, tmp_path_factory):
    """A config with which every stage has settings."""
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (48, 64)).save(folder / "one.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "one.png", "text": "a woman"}')
    config = base_config()
    config.weights.update(base=str(tiny_base), scorer=str(tiny_scorer))
    config.prompts.update(train="toon:train", validation="toon:validation", test="toon:test")
    config.prompts.update(train_count=4, validation_count=3, test_count=3)
    config.finetune.images = str(folder)
    return config


def settings(config):
    experiment = typed(config)
    return {name: importlib.import_module(f"hgdpo_jax.stages.{name}").settings(experiment) for name in STAGES}


def other(value):
    """A value of the same type that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "float32" if value == "bfloat16" else f"{value}x"
    return value[:-1] if isinstance(value, tuple) else type(value)(value + 1)


@pytest.mark.parametrize("name", [name for name in DECISIVE if not name.startswith("preflight.")])
def test_a_setting_that_is_not_declared_free_changes_the_fingerprint_of_some_stage(config, name):
    changed = base_config()
    changed.update(config)
    with changed.unlocked():
        value = "sft" if name == "objective" else 1 if name.endswith("count") else other(DECISIVE[name])
        changed.update_from_flattened_dict({name: value})
    assert settings(changed) != settings(config)


def test_a_config_of_another_origin_is_refused_with_the_setting_that_it_lacks():
    config = base_config().copy_and_resolve_references()
    with config.unlocked():
        del config.pool["steps"]
    with pytest.raises(UserError, match="config.pool lacks steps"):
        typed(config)
