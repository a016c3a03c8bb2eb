"""A killed run, started again, ends with the same LoRA file as one that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KILLS = 10


def start(workdir: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "hgdpo_jax.main", "--config=configs/toon_smoke.py", f"--workdir={workdir}"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "xla")},
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def lora_bytes(workdir: Path) -> dict[str, bytes]:
    folder = workdir / "runs/toon_smoke/export_adapter"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.slow
def test_lora_is_byte_identical_after_kill_9_at_ten_random_moments(tmp_path):
    # The first run compiles; the second tells how long an undisturbed run takes.
    for name in ("compiled", "undisturbed"):
        began = time.monotonic()
        finish(start(tmp_path / name))
        seconds = time.monotonic() - began
    expected = lora_bytes(tmp_path / "undisturbed")
    assert len(expected) == 2 and lora_bytes(tmp_path / "compiled") == expected
    moments = random.Random(0)
    for kill in range(KILLS):
        workdir = tmp_path / f"killed-{kill}"
        process = start(workdir)
        moment = moments.uniform(0.1, 1.0) * seconds
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        finish(start(workdir))
        assert lora_bytes(workdir) == expected, f"killed after {moment:.1f} s of {seconds:.1f} s"
