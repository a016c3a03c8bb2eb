"""What packages add by name, and what works without the packages of the one that ships."""

import subprocess
import sys

import pytest

from hgdpo_jax import plugins
from hgdpo_jax.base_config import base_config, typed
from hgdpo_jax.config_files import checked
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.main import main
from hgdpo_jax.scorers.sources import ScorerSource
from hgdpo_jax.stages import stage_names
from hgdpo_jax.weights.sources import resolve_source

IMPORT = "from hgdpo_jax.plugins import Plugin\n"
PLUGIN = f"""{IMPORT}
PLUGIN = Plugin(
    prompts=lambda name, count: [f"{{name}} {{number}}" for number in range(count)],
    weights={{"studio-base": "BASE"}},
    scorers={{"brightness": "studio.scorers:brightness"}},
    stages="studio.stages",
    attribution="Drawn by the studio.",
)
"""
STAGE = """
INPUTS = ()

def settings(config):
    return {}

def plan(config, run):
    return "a day in the studio"

def run(config, run):
    (run.folder / "picture").write_text("drawn")
"""
CONFIG = """
from hgdpo_jax.base_config import base_config

def get_config():
    config = base_config()
    config.stages = ("generate_pool",)
    config.dtype, config.weights.base = "float32", "BASE"
    config.prompts.train, config.pool.size, config.pool.steps = "PROMPTS", 2, 2
    config.pool.width, config.pool.height = 48, 64
    return config
"""
WITHOUT_DRAWING = """
import sys
sys.modules.update(dicebear=None, dicebear_styles=None, resvg_py=None)
from hgdpo_jax.main import main
for arguments in ["--help"], ["--plan"], [], ["--config.name=toon", "--config.prompts.train=toon:train", "--plan"]:
    print("status", main([*sys.argv[1:], *arguments]))
"""


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """Installs a package with a plugin; returns the plugin's file."""
    (tmp_path / "studio/stages").mkdir(parents=True)
    (tmp_path / "studio/scorers.py").write_text("def brightness(images, prompts):\n    return images.mean((1, 2, 3))\n")
    (tmp_path / "studio/stages/draw_by_hand.py").write_text(STAGE)
    (tmp_path / "studio/plugin.py").write_text(PLUGIN.replace("BASE", str(tmp_path / "base")))
    (tmp_path / "studio-1.0.dist-info").mkdir()
    (tmp_path / "studio-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: studio\nVersion: 1.0\n")
    (tmp_path / "studio-1.0.dist-info/entry_points.txt").write_text(
        "[hgdpo_jax.plugins]\nstudio = studio.plugin:PLUGIN\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugins.installed.cache_clear()
    resolve_source.cache_clear()
    yield tmp_path / "studio/plugin.py"
    plugins.installed.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "studio"]:
        del sys.modules[name]


def test_an_installed_package_adds_prompts_weights_scorers_stages_and_an_attribution(studio, tmp_path, capsys):
    assert load_prompts("studio:faces", 2) == ["faces 0", "faces 1"]
    (tmp_path / "base").mkdir()
    assert str(resolve_source("studio-base")) == str(tmp_path / "base")
    scorer = ScorerSource.parse("light=brightness")
    assert (scorer.name, scorer.kind, scorer.source) == ("light", "function", "studio.scorers:brightness")

    (tmp_path / "tiny.py").write_text(CONFIG)
    command = [f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'work'}"]
    assert main([*command, "--stage=draw_by_hand"]) == 0
    assert (tmp_path / "work/runs/tiny/draw_by_hand/picture").read_text() == "drawn"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "a day in the studio" in out and "draw_by_hand, " in out


@pytest.mark.parametrize(
    ("weights", "prompts", "expected"),
    [
        (["studio-base", ""], ["people.txt"], "Drawn by the studio."),
        (["{folder}/base/vae"], ["people.txt"], "Drawn by the studio."),
        (["runwayml/base"], ["people.txt", "studio:faces"], "Drawn by the studio."),
        (["{folder}/base-of-others", ""], ["studio.csv:prompt"], ""),
    ],
)
def test_an_attribution_follows_the_weights_that_draw_the_images_and_their_prompts(
    studio, tmp_path, weights, prompts, expected
):
    assert plugins.attribution([source.format(folder=tmp_path) for source in weights], prompts) == expected


def test_what_no_plugin_names_is_refused_with_what_they_do_name(studio):
    with pytest.raises(UserError, match="'nobody:faces' does not exist.* or one of parti-people, toon:..., studio:..."):
        load_prompts("nobody:faces", 2)
    with pytest.raises(UserError, match="nobody is not an existing folder .* or one of .*toon-judge.* studio-base"):
        resolve_source("nobody")
    with pytest.raises(
        UserError, match="studio-base is expected in .*/base, which does not exist: install its package"
    ):
        resolve_source("studio-base")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("PLUGIN = 1 / 0\n", r"studio \(studio.plugin:PLUGIN\) cannot be loaded \(division by zero\)"),
        ("PLUGIN = {}\n", "is a dict, expected a Plugin"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_in_one_line(studio, code, message):
    studio.write_text(code)
    with pytest.raises(UserError, match=message) as error:
        load_prompts("studio:faces", 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "use", "message"),
    [
        (
            "weights={'toon': '.'}",
            lambda: resolve_source("toon"),
            "studio adds 'toon' to weights, but that name is taken",
        ),
        ("scorers={'clip_score': 'a:b'}", lambda: ScorerSource.parse("clip_score:toon"), "'clip_score' to scorers"),
        ("sections={'pool': int}", lambda: typed(base_config()), "'pool' to sections"),
    ],
)
def test_a_name_that_exists_already_is_refused_with_the_plugin_that_adds_it(studio, code, use, message):
    studio.write_text(f"{IMPORT}PLUGIN = Plugin({code})\n")
    with pytest.raises(UserError, match=message):
        use()


def test_a_stage_of_a_plugin_that_is_called_as_one_of_the_core_is_refused(studio):
    (studio.parent / "stages/generate_pool.py").write_text(STAGE)
    with pytest.raises(UserError, match="studio.stages.generate_pool is also hgdpo_jax.stages.generate_pool"):
        stage_names()


def test_the_settings_of_a_plugin_are_sections_of_configs_with_types_and_limits(studio):
    studio.write_text(
        "import dataclasses\nfrom hgdpo_jax.settings import setting\n"
        "@dataclasses.dataclass(frozen=True)\nclass Studio:\n    brushes: int = setting(3, least=1)\n"
        f"{IMPORT}PLUGIN = Plugin(sections={{'studio': Studio}})\n"
    )
    config = base_config()
    with config.unlocked():
        config.studio = {"brushes": 5}
    assert checked(config).extra["studio"].brushes == 5
    config.studio.brushes = 0
    with pytest.raises(UserError, match="studio.brushes is 0, expected at least 1"):
        checked(config)


def test_all_but_toon_portraits_works_without_the_packages_that_draw_them(tiny_base, tmp_path):
    (tmp_path / "people.txt").write_text("a man\na woman\n")
    config = CONFIG.replace("BASE", str(tiny_base)).replace("PROMPTS", str(tmp_path / "people.txt"))
    (tmp_path / "tiny.py").write_text(config)
    command = [f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'work'}"]
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_DRAWING, *command], capture_output=True, text=True, check=True
    )
    statuses = [line for line in finished.stdout.splitlines() if line.startswith("status")]
    assert statuses == ["status 0", "status 0", "status 0", "status 2"], finished.stderr
    assert list((tmp_path / "work/pools").glob("*/*")) and "train_unet" in finished.stdout
    assert finished.stderr.splitlines()[-1] == (
        "error: config.prompts.train: toon portraits need resvg_py, which is not installed: "
        "pip install 'hgdpo_jax[toon]'"
    )
