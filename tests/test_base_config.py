"""Settings as typed values, and what they decide."""

import dataclasses
import importlib
import shutil

import pytest
from PIL import Image

from hgdpo_jax.base_config import Experiment, base_config, typed
from hgdpo_jax.errors import UserError
from hgdpo_jax.objectives.dpo import DPO
from hgdpo_jax.settings import leaves
from hgdpo_jax.stages import train_policy

STAGES = ("generate_pool", "score_pool", "select_pairs", "check_pairs", "train_policy", "sample_images")
STAGES += ("evaluate_policy", "sweep_scale", "encode_images", "finetune_base")


# Every field that decides results, by its name in a config.
DECISIVE = {
    name.replace("objective.", "dpo."): value
    for name, field, value in leaves(Experiment())
    if field.metadata.get("decides", True) and name != "extra"
} | {"objective": "sft"}
# Every field that names files.
NAMED = [name for name, field, _ in leaves(Experiment()) if field.metadata.get("names_files")]


@pytest.fixture(scope="module")
def config(tiny_base, tiny_scorer, tmp_path_factory):
    """A config with which every stage has settings."""
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (48, 64)).save(folder / "one.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "one.png", "text": "a woman", "caption": "a man"}')
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


@pytest.fixture
def other_sources(tiny_base, tiny_scorer, tmp_path, monkeypatch):
    """For each setting that names files another value, with other content behind it."""

    def changed(folder, file):
        copy = tmp_path / f"other-{file.replace('/', '-')}"
        shutil.copytree(folder, copy)
        content = bytearray((copy / file).read_bytes())
        content[-1] ^= 1
        (copy / file).write_bytes(content)
        return str(copy)

    (tmp_path / "fingerprints.py").write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3)) > 100\n")
    monkeypatch.syspath_prepend(tmp_path)
    # Images count by their names and captions.
    Image.new("RGB", (48, 64)).save(tmp_path / "two.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "two.png", "text": "a woman"}')
    return {
        "weights.base": changed(tiny_base, "unet/diffusion_pytorch_model.safetensors"),
        "weights.family": "second_family:SecondFamily",
        "weights.tokenizer": changed(tiny_base / "tokenizer", "merges.txt"),
        "weights.vae": changed(tiny_base / "vae", "diffusion_pytorch_model.safetensors"),
        "weights.scorer": changed(tiny_scorer, "model.safetensors"),
        "prompts.train": "toon:test",
        "prompts.validation": "toon:test",
        "prompts.test": "toon:validation",
        "pairs.filter": "fingerprints:bright",
        "finetune.images": str(tmp_path),
        "finetune.caption_column": "caption",
        "sample.prompts": ("a man",),
        "evaluate.models": ("base", "tuned@0.3"),
        "evaluate.scorers": ("fingerprints:bright",),
        "evaluate.measures": ("fingerprints:bright",),
    }


@pytest.mark.parametrize("name", NAMED)
def test_other_files_change_the_fingerprint_of_some_stage(config, other_sources, name):
    changed = base_config()
    changed.update(config)
    changed.update_from_flattened_dict({name: other_sources[name]})
    assert settings(changed) != settings(config)


def test_a_training_is_another_one_with_a_new_revision_or_where_means_over_a_batch_decide(config):
    def settings_of(objective, **changes):
        experiment = typed(config)
        train = dataclasses.replace(experiment.train, **changes)
        return train_policy.settings(dataclasses.replace(experiment, objective=objective, train=train))

    assert settings_of(DPO(), device_batch=2) == settings_of(DPO(), device_batch=4)
    for changed in ({"revision": 2}, {"batch_means": True}):
        other_objective = type("DPO", (DPO,), {"__module__": DPO.__module__, **changed})()
        assert settings_of(other_objective, device_batch=2) != settings_of(DPO(), device_batch=2)
    assert settings_of(other_objective, device_batch=2) != settings_of(other_objective, device_batch=4)


def test_a_config_of_another_origin_is_refused_with_the_setting_that_it_lacks():
    config = base_config().copy_and_resolve_references()
    with config.unlocked():
        del config.pool["steps"]
    with pytest.raises(UserError, match="config.pool lacks steps"):
        typed(config)
