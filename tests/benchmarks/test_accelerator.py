"""The rehearsal of the checks and timings on an accelerator."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.accelerator import page
from benchmarks.accelerator.__main__ import FIGURES, FOLDER, all_rows
from benchmarks.accelerator.models import FULL, TINY

ROOT = Path(__file__).parent.parent.parent
# Of this project's dependencies, those that a machine with JAX and PyTorch has: jax brings scipy and ml_dtypes, flax,
# optax and transformers bring etils, absl, huggingface_hub and tokenizers, PyTorch jinja2, markupsafe and fsspec.
# Versions of etils before 1.15 need importlib_resources.
PRESENT = {
    *("absl", "einops", "etils", "flax", "fsspec", "huggingface_hub", "jax", "jaxtyping", "jinja2", "markupsafe"),
    *(
        "importlib_resources",
        "ml_dtypes",
        "numpy",
        "optax",
        "pillow",
        "safetensors",
        "scipy",
        "tokenizers",
        "tqdm",
        "transformers",
    ),
}
MODULES = {"dicebear_core": "dicebear", "dicebear_styles": "dicebear", "orbax_checkpoint": "orbax"}


def absent_packages():
    """Modules of what this project and its demo require and such a machine lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = project["dependencies"] + project["optional-dependencies"]["toon"]
    names = {name.split(">")[0].split("[")[0].replace("-", "_") for name in required}
    names = {"absl" if name == "absl_py" else name for name in names}
    return {MODULES.get(name, name) for name in names - PRESENT}


@pytest.fixture
def rehearse(tmp_path):
    """Runs the command with tiny models where these packages cannot be imported."""
    blocker = f"""import sys
import tomllib
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in {absent_packages()!r}:
            return super().find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
    (tmp_path / "sitecustomize.py").write_text(blocker)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def run(*arguments):
        command = [sys.executable, "-m", "benchmarks.accelerator", "--rehearse", f"--results={tmp_path}", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def test_the_rehearsal_passes_every_row_without_further_packages_and_a_planted_value_fails_by_name(rehearse, tmp_path):
    assert {"orbax", "grain", "ml_collections", "tensorflow_datasets", "dicebear"} <= absent_packages()
    found = rehearse("--budget=1000")
    assert found.returncode == 0, found.stdout + found.stderr
    results = tmp_path / "cpu.json"
    rows = json.loads(results.read_text())["rows"]
    assert list(rows) == [row.name for row in all_rows(TINY)]
    assert all("errors" in row or row["seconds"] > 0 for row in rows.values())
    assert rows["sampling"]["flops"] > 0 and rows["sampling"]["kinds"][0]["share"] > 0

    # A second run takes the missing row alone.
    content = json.loads(results.read_text())
    del content["rows"]["check: text encoder"]
    results.write_text(json.dumps(content))
    figures = json.loads(FIGURES.read_text())
    figures["tiny"]["text encoder"][0] += 1.0
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    found = rehearse(f"--figures={tmp_path / 'figures.json'}")
    assert f"1 of {len(rows)} rows" in found.stdout
    assert found.returncode == 1
    assert found.stderr.strip().splitlines()[-1] == "failed: check: text encoder: float32 beside a CPU"


def test_the_estimates_of_all_rows_add_up_to_less_than_eight_minutes():
    lines, total = page.plan(all_rows(FULL))
    assert total == pytest.approx(sum(seconds for _, _, seconds in lines))
    assert total < 480


def test_without_an_accelerator_one_line_says_what_to_do(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--results={tmp_path}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1 and "--rehearse" in found.stderr
    assert not list(tmp_path.iterdir())


def test_the_committed_page_is_that_of_the_committed_results():
    devices = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json")) if path != FIGURES]
    assert page.PAGE.read_text() == page.page(devices)


def test_the_page_puts_the_peer_and_preflight_beside_what_was_measured():
    rows = {
        "check: unet": {
            "errors": {"float32 beside PyTorch": {"error": 2e-3, "limit": 1e-4}},
            "failed": ["float32 beside PyTorch"],
        },
        "matrix product": {"seconds": 1e-3, "flops_per_second": 8e14},
        "sampling": {"seconds": 5.0, "flops_per_second": 4e14, "roofline_seconds": 2.5, "peak_bytes": 5e9},
        "peer: sampling": {"seconds": 6.0},
        "peer: unet portrait, 1": {"left_out": "needs diffusers"},
    }
    shown = page.page([{"device": "a card", "commit": "0123456", "versions": {"jax": "1"}, "rows": rows}])
    assert "**failed**" in shown and "- peer: unet portrait, 1: needs diffusers" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("| sampling"))
    assert [cell.strip() for cell in line.split("|")][3:] == ["400", "50%", "2.5", "", "5.0", "6", "1.20", ""]
    assert page.efficiencies(rows) == {"sampling": 0.5}
