"""What all launch scripts have in common."""

import re
import subprocess

import pytest
from launching import LAUNCH, tool

SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    finished = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_script_tells_how_it_is_used(place, script):
    finished = place.run(script.name, "--help")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert f"usage: launch/{script.name}" in finished.stdout


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("local_processes.sh", []),
        ("local_processes.sh", ["--config=configs/toon.py"]),
        ("slurm.sh", ["configs/toon.py"]),
        ("tpu_pod.sh", []),
        ("tpu_pod.sh", ["destroy"]),
        ("tpu_pod.sh", ["go", "--zone=z"]),
        ("tpu_pod.sh", ["create", "--config=configs/toon.py"]),
        ("tpu_worker.sh", ["fly"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_starts_nothing(place, script, arguments):
    for name in ("gcloud", "sbatch", "srun"):
        place.command(name)
    finished = place.run(script, *arguments, PYTHON=str(place.command("python")))
    assert finished.returncode == 2
    assert re.fullmatch(r"error: .*--help (tells more|lists them)\n", finished.stderr)
    assert place.recorded() == []
