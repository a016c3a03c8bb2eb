"""Configs found by path and by name, and what they import from each other."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hgdpo_jax as hg
from hgdpo_jax.errors import UserError

ROOT = Path(__file__).parent.parent
DERIVED = """
from configs.{name} import get_config as other

def get_config():
    config = other()
    config.seed = 7
    return config
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder that is no clone, in which a program starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(place for place in sys.path if place not in ("", str(ROOT)))])
    return tmp_path


def test_a_config_that_ships_is_known_by_its_name_in_any_folder(elsewhere):
    config = hg.load_config("toon_ablations:n2-1", ["--config.train.steps=3"])
    assert (config.name, config.pool.size, config.train.seed, config.train.steps) == ("n2-1", 2, 1, 3)
    assert hg.load_config("pilot").name == "pilot"
    with pytest.raises(UserError, match="toon_smok does not exist, expected .* or toon_smoke, which ships"):
        hg.load_config("toon_smok")


def test_a_config_of_ones_own_may_begin_with_one_that_ships(elsewhere):
    (elsewhere / "mine.py").write_text(DERIVED.format(name="toon"))
    config = hg.load_config("mine.py")
    assert (config.name, config.seed, config.weights.base) == ("mine", 7, "toon")


def test_configs_of_ones_own_come_before_those_that_ship_where_they_lie_together(elsewhere):
    other = elsewhere / "project" / "configs"
    other.mkdir(parents=True)
    (other / "toon.py").write_text(DERIVED.format(name="n20"))
    (other / "toon_smoke.py").write_text(DERIVED.format(name="toon"))
    assert hg.load_config(str(other / "toon_smoke.py")).prompts.train_count == 100_000
    # What ships is no mixture: its own come first.
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "toon.py").write_text("raise AssertionError")
    assert hg.load_config("toon_smoke").prompts.train_count == 24


def test_another_package_of_this_name_stays_as_it_is(elsewhere):
    package = elsewhere / "configs"
    package.mkdir()
    (package / "__init__.py").write_text("from configs import toon")
    (package / "toon.py").write_text("LEARNING_RATE = 1.0")
    (elsewhere / "mine.py").write_text("import configs.toon\n" + DERIVED.format(name="n20"))
    program = """
        import configs, sys
        import hgdpo_jax as hg
        before = sys.modules["configs"], sys.modules["configs.toon"]
        assert hg.load_config("mine.py").prompts.train_count == 100_000
        assert hg.load_config("toon_smoke").prompts.train_count == 24
        assert before == (sys.modules["configs"], sys.modules["configs.toon"])
        assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("hgdpo_jax")]
        assert configs.toon.LEARNING_RATE == 1.0
    """
    environment = os.environ | {"PYTHONPATH": f"{elsewhere}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=elsewhere, env=environment, check=True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return ConfigDict({'seed': 1})", "config.dpo lacks beta: begin with config = base_config()"),
        ("return ConfigDict(base_config().to_dict() | {'pool': 3})", "config.pool lacks block: begin with"),
        (
            "config = base_config()\n    config.unlock()\n    config.studio = {}\n    return config",
            "has studio, which is no",
        ),
        (
            "config = base_config()\n    config.update({'loss': {}})\n    return config",
            "config.loss is not a setting: loss.kind is now",
        ),
        ("return {'seed': 1}", "returned dict, expected the ConfigDict of base_config()"),
        ("pass", "returned NoneType, expected the ConfigDict of base_config()"),
        ("return base_config() + 1", "failed with TypeError: unsupported operand"),
        ("open('gone')", "No such file or directory: 'gone'"),
    ],
)
def test_a_config_that_is_not_made_of_base_config_is_one_line_that_says_so(elsewhere, body, words):
    imports = "from ml_collections import ConfigDict\nfrom hgdpo_jax.base_config import base_config\n"
    (elsewhere / "bare.py").write_text(f"{imports}\ndef get_config():\n    {body}\n")
    with pytest.raises(UserError) as caught:
        hg.load_config("bare.py", ["--config.seed=2"])
    assert str(caught.value).startswith("config file bare.py") and words in str(caught.value)


def test_a_field_of_the_former_loss_says_what_it_is_now(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from hgdpo_jax.base_config import base_config\ndef get_config():\n    config = base_config()\n"
        "    config.loss.beta = 3.0\n    return config\n"
    )
    for path, changes in ((tmp_path / "mine.py", ()), ("toon", ("--config.loss.beta=3",))):
        with pytest.raises(UserError, match="config.loss.* is not a setting.*loss.beta is config.dpo.beta"):
            hg.load_config(str(path), changes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config.pool.widht = 512", "config.pool.widht is not a setting: did you mean config.pool.width?"),
        ("config.poool.width = 512", "config.poool is not a setting: did you mean config.pool?"),
        ("x = config.pool.widht", "config.pool.widht is not a setting: did you mean config.pool.width?"),
        ("config.pool.update(widht=512)", "config.widht is not a setting: did you mean config.pool.width?"),
        ("config.pool.rank = 4", "config.pool.rank is not a setting: did you mean config.adapter.rank?"),
        ("config.pool.width = 3.5", "config.pool.width is 3.5, expected a whole number"),
        ("config.pool = 3", "config.pool is 3, expected a section: set its fields, as in config.pool.size = 4"),
    ],
)
def test_a_wrong_line_of_a_config_file_is_named_with_what_was_meant(tmp_path, line, words):
    imports = "from hgdpo_jax.base_config import base_config\n\ndef get_config():\n    config = base_config()\n"
    (tmp_path / "mine.py").write_text(f"{imports}    {line}\n    return config\n")
    with pytest.raises(UserError) as caught:
        hg.load_config(str(tmp_path / "mine.py"))
    assert str(caught.value) == f"config file {tmp_path / 'mine.py'}, line 5: {words}"


@pytest.mark.parametrize("name", ["attention", "pairs.latents", "scoring.framing", "train.remat"])
def test_a_choice_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(UserError, match=f"{name} is 'foo', expected '\\w+' or '\\w+'"):
        hg.load_config("toon", (f"--config.{name}=foo",))


def test_a_setting_without_a_value_is_refused_with_what_it_should_hold():
    config = hg.load_config("toon")
    config.pool.width = None
    with pytest.raises(UserError, match="pool.width holds None, expected whole numbers"):
        hg.plan(config)
