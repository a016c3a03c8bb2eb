"""What the wheel holds, and the program as pip installs it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A config of one's own in a folder that is no clone.
MINE = "from configs.toon_smoke import get_config\n"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what is packed: building writes beside it."""
    folder = tmp_path_factory.mktemp("packaging") / "sources"
    for name in ("hgdpo_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources):
    folder = sources.parent / "wheels"
    program = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=sources, capture_output=True, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_package_and_the_configs_within_it(sources, wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {str(path.relative_to(sources)) for path in sources.glob("hgdpo_jax/**/*") if path.is_file()}
    configs = {f"hgdpo_jax/configs/{path.name}" for path in sources.glob("configs/*.py")}
    assert len(configs) > 10 and packed == files | configs


def test_the_wheel_reads_configs_that_ship_and_those_that_begin_with_them_without_a_clone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "mine.py").write_text(MINE)
    program = """if True:
        import hgdpo_jax as hg
        print(hg.__file__, *(hg.load_config(name).name for name in ("toon_ablations:n20-1", "mine.py")))
    """
    variables = os.environ | {"PYTHONPATH": "site"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.stdout.split() == [f"{tmp_path}/site/hgdpo_jax/__init__.py", "n20-1", "mine"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_what_pip_installs_plans_the_demo_and_a_config_of_ones_own_in_any_folder(sources, wheel, tmp_path, kind):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    # All else is there already.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [sys.executable, "-m", "pip", "--quiet", "--python", python, "install", "--no-deps", "--no-index"]
    what = [wheel] if kind == "wheel" else ["--no-build-isolation", "--editable", sources]
    subprocess.run([*install, "--force-reinstall", *what], env=variables, check=True)
    (tmp_path / "mine.py").write_text(MINE)
    for config in ("toon", "mine.py"):
        command = [environment / "bin" / "hgdpo", f"--config={config}", "--plan"]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 8, done.stderr
    where = [python, "-c", "import hgdpo_jax; print(hgdpo_jax.__file__)"]
    place = subprocess.run(where, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout
    assert place.startswith(str(sources if kind == "editable" else environment))
