"""The smallest experiment, on the weights that ship: from prompts to LoRA files and report."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import hgdpo_jax as hg

ROOT = Path(__file__).parent.parent
STAGES = 8


def run(workdir: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "hgdpo_jax.main", "--config=configs/toon_smoke.py", f"--workdir={workdir}"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs_of(workdir))}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def programs_of(workdir: Path) -> Path:
    """Where the compiled programs lie; every one is kept."""
    return workdir.parent / "programs"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "workdir"
    run(folder)
    return folder


def test_report_is_written_with_every_score_the_colour_shift_and_whose_portraits_it_shows(workdir):
    folder = workdir / "runs/toon_smoke/evaluate_policy/report"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["prompts"] == 8
    assert set(summary["win_rate"]) == {"scorer", "judge", "oracle"}
    assert all(value["low"] <= value["rate"] <= value["high"] for value in summary["win_rate"].values())
    assert set(summary["color_shift"]) == {"hue", "saturation", "value"}
    page = (folder / "index.html").read_text()
    assert "<html" in page and "ToonHead" in page


def test_exported_files_change_what_the_base_draws_and_are_one_lora(workdir):
    folder = workdir / "runs/toon_smoke/export_adapter"
    adapters = [hg.load_adapter(path) for path in sorted(folder.glob("*.safetensors"))]
    assert len(adapters) == 2
    model = hg.StableDiffusion.load("toon")
    latents = np.ones((1, *model.latent_shape(48, 64)), np.float32)
    states = model.encode_prompts(["a portrait of a man"])
    base, first, second = (
        model.predict_noise(latents, [500], states, applied)
        for applied in ((), [(adapters[0], 1.0)], [(adapters[1], 1.0)])
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - base).max() > 0


def test_second_run_skips_every_stage(workdir):
    lines = run(workdir)
    assert sum("done before, skipped" in line for line in lines) == STAGES
    assert lines[-1].startswith("report: ")


def test_the_readme_runs_an_experiment_in_python(workdir):
    paragraph = r"\n\n((?:    .*\n|\n)*    .* = hg\.run\(.*\n(?:    .*\n)*)"
    (block,) = re.findall(paragraph, (ROOT / "README.md").read_text())
    assert len(block.strip().splitlines()) <= 10
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs_of(workdir)), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(block)]
    done = subprocess.run(command, cwd=workdir.parent, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    report = "workdir/runs/second_best/evaluate_policy/report"
    rate = json.loads((workdir.parent / report / "summary.json").read_text())["win_rate"]["judge"]
    assert done.stdout.splitlines()[-1] == f"{report}/index.html {rate}"


@pytest.mark.slow
def test_a_second_start_of_every_stage_compiles_nothing(workdir):
    programs = {path.name for path in programs_of(workdir).iterdir()}
    assert len(programs) > 20
    run(workdir.with_name("another"))
    assert {path.name for path in programs_of(workdir).iterdir()} == programs


def test_sft_on_the_winners_trains_on_the_pool_that_is_there(workdir):
    pool = {path: path.stat().st_mtime_ns for path in workdir.glob("pools/**/*.safetensors")}
    stages = "--stage=generate_pool,score_pool,select_pairs,train_policy"
    run(workdir, "--config.name=sft", "--config.objective=sft", stages)
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("pools/**/*.safetensors")} == pool
    dpo, sft = (
        hg.load_adapter(workdir / f"runs/{name}/train_policy/best.safetensors") for name in ("toon_smoke", "sft")
    )
    assert all(np.abs(dpo[module]["up"] - sft[module]["up"]).max() > 0 for module in dpo)
    scalars = [json.loads(line) for line in (workdir / "runs/sft/train_policy/log.jsonl").read_text().splitlines()]
    assert "policy_winner_error" in scalars[0] and "margin" not in scalars[0]
