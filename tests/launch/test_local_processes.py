"""Several processes on one machine."""

import re
import signal
import subprocess

import pytest
from launching import LAUNCH, MAIN, commands


def test_local_dry_run_prints_one_command_a_process(place):
    finished = place.run("local_processes.sh", "--dry-run", "2", *MAIN)
    first, second = commands(finished.stdout)
    assert first[:2] == ["env", "JAX_PLATFORMS=cpu"] and first[3:5] == ["-m", "hgdpo_jax.main"]
    assert re.fullmatch(r"--coordinator_address=127\.0\.0\.1:\d+", first[5])
    assert re.fullmatch(r"--config\.cpu_devices=[1248]", first[8])
    assert first[6:8] + first[9:] == ["--num_processes=2", "--process_id=0", *MAIN]
    assert [word for word in second if word not in first] == ["--process_id=1"]


# Answers the question for a free port; as a process, says its arguments and does what OUTCOME says.
PROCESS = """
[[ $1 != -c ]] || { echo 4711; exit; }
trap 'echo saved; exit 143' TERM
for argument; do [[ $argument != --process_id=* ]] || number=${argument#*=}; done
echo "started with ${@: -1}"
if [[ $number == 1 ]]; then sleep 0.5 && exit "$OUTCOME"; fi
for _ in {1..100}; do [[ $OUTCOME == 0 ]] || sleep 0.1; done
"""


def test_local_processes_print_their_number_before_each_line(place):
    python = str(place.command("python", PROCESS))
    finished = place.run("local_processes.sh", "2", "--stage=a", PYTHON=python, OUTCOME="0")
    assert finished.returncode == 0
    assert sorted(finished.stdout.splitlines()) == ["[0] started with --stage=a", "[1] started with --stage=a"]


def test_when_a_local_process_fails_the_others_save_and_its_status_counts(place):
    python = str(place.command("python", PROCESS))
    finished = place.run("local_processes.sh", "3", "--stage=a", PYTHON=python, OUTCOME="2")
    assert finished.returncode == 2
    assert {"[0] saved", "[2] saved"} <= set(finished.stdout.splitlines())


@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_the_script_stops_the_local_processes(place, signal_number, status):
    python = str(place.command("python", PROCESS.replace("number == 1", "number == none")))
    environment = place.environment | {"PYTHON": python, "OUTCOME": "1"}
    # A shell cannot catch what was ignored when it was started, as in tests that run in the background.
    command = ["env", "--default-signal=INT", str(LAUNCH / "local_processes.sh"), "2", "--stage=a"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal_number)
        lines += process.stdout.readlines()
    assert process.returncode == status
    assert "[0] saved\n" in lines
