"""A job under SLURM, which is played by recorders."""

import pytest
from launching import LAUNCH, MAIN, commands


def test_slurm_dry_run_prints_the_submission_and_what_the_job_runs(place):
    finished = place.run("slurm.sh", "--dry-run", "--partition=gpu", "--nodes=4", "--", *MAIN, PYTHON="python")
    assert commands(finished.stdout) == [
        ["sbatch", "--partition=gpu", "--nodes=4", str(LAUNCH / "slurm.sh"), "--", *MAIN],
        ["srun", "--label", "--cpu-bind=none", "python", "-m", "hgdpo_jax.main", *MAIN],
    ]


def test_a_job_that_ends_at_the_time_limit_is_queued_again(place):
    place.command("srun", "exit 143")
    place.command("scontrol")
    finished = place.run("slurm.sh", "--", *MAIN, PYTHON="python", SLURM_JOB_ID="7")
    assert finished.returncode == 143
    assert place.recorded()[1:] == [["scontrol", "requeue", "7"]]


@pytest.mark.parametrize("status", [0, 1, 2, 134])
def test_a_job_that_ends_otherwise_is_not_queued_again(place, status):
    place.command("srun", f"exit {status}")
    place.command("scontrol")
    finished = place.run("slurm.sh", "--", *MAIN, PYTHON="python", SLURM_JOB_ID="7")
    assert finished.returncode == status
    assert [command[0] for command in place.recorded()] == ["srun"]


def test_a_cancelled_job_is_not_queued_again(place):
    # SLURM signals the shell and the processes.
    place.command("srun", "kill -TERM $PPID; exit 143")
    place.command("scontrol")
    finished = place.run("slurm.sh", "--", *MAIN, PYTHON="python", SLURM_JOB_ID="7")
    assert finished.returncode == 143
    assert [command[0] for command in place.recorded()] == ["srun"]
