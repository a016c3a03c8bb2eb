import importlib
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from hgdpo_jax.config_files import checked, load_config
from hgdpo_jax.families.stable_diffusion import load_adapter, save_adapter
from hgdpo_jax.files import expanded, write_bytes, write_json

CONFIG = """
from hgdpo_jax.base_config import base_config

def get_config():
    config = base_config()
    config.weights.base = "HOME/base"
    config.weights.tokenizer = "HOME/base/tokenizer"
    config.weights.vae = "HOME/base/vae"
    config.weights.scorer = "pick_score:HOME/scorer,processor=HOME/scorer"
    config.prompts.train = "HOME/prompts.txt"
    config.prompts.validation = "HOME/prompts.csv:caption"
    config.prompts.test = "HOME/prompts.txt"
    config.prompts.validation_count = 1
    config.finetune.images = "HOME/images"
    config.evaluate.models = ("base", "other=HOME/lora.safetensors@0.5", "folder:HOME/images")
    config.evaluate.scorers = ("again=HOME/scorer",)
    return config
"""
STAGES = ("generate_pool", "score_pool", "train_policy", "evaluate_policy", "encode_images")


@pytest.fixture
def home(tmp_path, monkeypatch, tiny_base, tiny_scorer):
    """A home folder with all that a config may name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").symlink_to(tiny_base)
    (tmp_path / "scorer").symlink_to(tiny_scorer)
    (tmp_path / "prompts.txt").write_text("a man\n")
    (tmp_path / "prompts.csv").write_text("caption\na woman\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "a man"}))
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "1.png")
    save_adapter({"mid_block.attn1.to_q": {"down": np.ones((2, 2)), "up": np.ones((2, 2))}}, "~/lora.safetensors")
    return tmp_path


def test_a_tilde_in_any_path_of_a_config_is_the_home_folder(home):
    (home / "short.py").write_text(CONFIG.replace("HOME", "~"))
    (home / "long.py").write_text(CONFIG.replace("HOME", str(home)))
    short, long = (checked(load_config(path)) for path in ("~/short.py", str(home / "long.py")))
    for name in STAGES:
        stage = importlib.import_module(f"hgdpo_jax.stages.{name}")
        assert stage.settings(short) == stage.settings(long)
    assert load_adapter("~/lora.safetensors").keys() == {"mid_block.attn1.to_q"}


def test_a_tilde_of_nobody_is_a_part_of_the_name(home):
    assert str(expanded("~nobody-of-this-name/x")) == "~nobody-of-this-name/x"
    assert str(expanded("gs://bucket/~/x")) == "gs://bucket/~/x"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_bytes(path, b"old")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(type(epath.Path(path)), "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_what_json_does_not_have_is_null(tmp_path):
    write_json(tmp_path / "values.json", {"b": [1.0, float("inf")], "a": np.array([[np.nan, 2.0]])})
    assert (tmp_path / "values.json").read_text().split() == '{ "a": [ [ null, 2.0 ] ], "b": [ 1.0, null ] }'.split()
