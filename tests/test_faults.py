"""Killed and otherwise disturbed runs, started again, end with the same files as one that nobody disturbed."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_disturbed_runs_end_with_the_pairs_and_the_lora_of_an_undisturbed_one(tmp_path):
    script = Path(__file__).parent / "faults.py"
    command = [sys.executable, str(script), "--kills=5", "--processes=1", f"--folder={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
