"""A TPU pod, whose gcloud is played by recorders, and what runs on its workers."""

import os
import re
import shlex
import signal
import subprocess
import time

import pytest
from launching import LAUNCH, MAIN, ROOT, commands

WHERE = ["--zone=us-west4-a", "--project=portraits"]
POD = ["--name=pod", *WHERE, "--spot", "--workdir=gs://bucket/hgdpo"]
TPUS = ["gcloud", "compute", "tpus"]
END = [*WHERE, "--quiet"]
LIST = [*TPUS, "queued-resources", "list", "--filter=name~/pod$", "--format=value(state.state)", *END]
CREATE = [
    *[*TPUS, "queued-resources", "create", "pod", "--node-id=pod", "--accelerator-type=v5litepod-16"],
    *["--runtime-version=v2-alpha-tpuv5-lite", "--spot", *END],
]
DELETE = [*TPUS, "queued-resources", "delete", "pod", "--force", *END]
INSTALL = (
    "hgdpo_jax/launch/tpu_worker.sh running 2>/dev/null || { mkdir -p hgdpo_jax && tar --extract --gzip "
    "--file=hgdpo_jax.tar.gz --directory=hgdpo_jax && hgdpo_jax/launch/tpu_worker.sh install; }"
)
START = "hgdpo_jax/launch/tpu_worker.sh start " + r"--workdir=gs://bucket/hgdpo --config=configs/mine.py"


def on_workers(command, *more):
    return [*TPUS, "tpu-vm", "ssh", "pod", "--worker=all", f"--command={command}", *more, *END]


def test_tpu_dry_run_prints_all_commands_for_a_new_pod(place):
    place.command("gcloud")
    finished = place.run("tpu_pod.sh", "go", *POD, "--dry-run", "--", "--config=configs/mine.py")
    assert (finished.returncode, finished.stderr, place.recorded()) == (0, "", [])
    printed = commands(re.sub(r"\S+/hgdpo_jax-\d+\.tar\.gz", "ARCHIVE", finished.stdout))
    pack = f"git -C {ROOT} ls-files --cached --others --exclude-standard | tar --create --gzip ARCHIVE"
    assert printed == [
        LIST,
        CREATE,
        LIST,
        pack.split(),
        [*TPUS, "tpu-vm", "scp", "ARCHIVE", "pod:hgdpo_jax.tar.gz", "--worker=all", *END],
        on_workers(INSTALL),
        on_workers(START),
        on_workers("hgdpo_jax/launch/tpu_worker.sh follow"),
        ["mkdir", "-p", "collected/logs", "collected/runs"],
        [
            *["gcloud", "storage", "rsync", "gs://bucket/hgdpo/runs", "collected/runs"],
            *["--recursive", "--exclude=.*/checkpoints/.*"],
        ],
        on_workers("cat hgdpo_jax/run/log", "--output-directory=collected/logs"),
    ]


# Lists the states in the file `states` one after the other; the last one stays.
STATES = """
if [[ $4 == list ]]; then
    head -n 1 states
    (($(wc -l <states) == 1)) || sed -i 1d states
fi
"""


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["ACTIVE"], [LIST]),
        (["", "PROVISIONING", "ACTIVE"], [LIST, CREATE, LIST, ["sleep", "30"], LIST]),
        (["SUSPENDED", "", "ACTIVE"], [LIST, DELETE, LIST, CREATE, LIST]),
        (["FAILED", "", "ACTIVE"], [LIST, DELETE, LIST, CREATE, LIST]),
    ],
    ids=["reused", "missing", "preempted", "failed"],
)
def test_a_pod_is_created_where_there_is_none_and_used_where_there_is_one(place, states, expected):
    place.command("gcloud", STATES)
    place.command("sleep")
    (place.folder / "states").write_text("".join(f"{state}\n" for state in states))
    assert place.run("tpu_pod.sh", "create", *POD).returncode == 0
    assert place.recorded() == expected


def test_what_gcloud_refuses_ends_the_script_and_is_not_tried_again(place):
    place.command("gcloud", "echo 'no permission' >&2; exit 1")
    finished = place.run("tpu_pod.sh", "go", *POD, "--", *MAIN)
    assert (finished.returncode, finished.stderr) == (1, "no permission\n")
    assert place.recorded() == [LIST]


def test_arguments_of_main_reach_the_workers_whole(place):
    place.command("gcloud")
    place.run("tpu_pod.sh", "run", *POD, "--", *MAIN)
    ((*_, command, _, _, _),) = place.recorded()
    assert shlex.split(command.removeprefix("--command="))[2:] == ["--workdir=gs://bucket/hgdpo", *MAIN]


# A pod of one machine, whose home is the folder `worker`; its Python says its arguments and ends as `outcomes` say.
ONE_WORKER = (
    STATES
    + """
[[ $1 == storage || $3 == queued-resources ]] && exit
[[ $4 != scp ]] || cp "$5" worker/hgdpo_jax.tar.gz
if [[ $4 == ssh ]]; then
    command=${7#--command=}
    cd worker && HOME=$PWD bash -c "$command"
fi
"""
)
UV = """
[[ $1 != venv ]] || mkdir -p .venv/bin
cp ../../python .venv/bin/python
"""
OUTCOMES = """
[[ $1 == -m ]] || exit
echo "main with ${*:3}"
outcome=$(head -n 1 ../../outcomes) && sed -i 1d ../../outcomes
exit "$outcome"
"""


@pytest.fixture
def one_worker(place):
    place.command("gcloud", ONE_WORKER)
    place.command("uv", UV)
    place.command("sleep", "exec /bin/sleep 0.05")
    place.command("python", OUTCOMES, folder=".")
    (place.folder / "worker").mkdir()
    (place.folder / "states").write_text("ACTIVE\n")

    def run(*outcomes):
        (place.folder / "outcomes").write_text("".join(f"{outcome}\n" for outcome in outcomes))
        return place.run("tpu_pod.sh", "go", *POD, "--", *MAIN)

    place.go = run
    return place


def runs_of(place):
    return [command for command in place.recorded() if command[:2] == ["python", "-m"]]


def test_a_run_is_copied_installed_followed_and_collected(one_worker):
    finished = one_worker.go(0)
    assert finished.returncode == 0, finished.stderr
    assert f"main with --workdir=gs://bucket/hgdpo {' '.join(MAIN)}\n" in finished.stdout
    assert runs_of(one_worker) == [["python", "-m", "hgdpo_jax.main", "--workdir=gs://bucket/hgdpo", *MAIN]]
    assert (one_worker.folder / "worker/hgdpo_jax/hgdpo_jax/main.py").is_file()
    assert ["uv", "pip", "install", "--quiet", "--python", ".venv", "--editable", ".[gcs,torch]", "jax[tpu]"] in (
        one_worker.recorded()
    )
    assert one_worker.recorded()[-2][:3] == ["gcloud", "storage", "rsync"]


def test_a_preempted_run_goes_on_in_a_new_pod(one_worker):
    # Seen by create; after the run; by create again.
    (one_worker.folder / "states").write_text("ACTIVE\nSUSPENDED\nSUSPENDED\n\nACTIVE\n")
    finished = one_worker.go(143, 0)
    assert finished.returncode == 0, finished.stderr
    assert len(runs_of(one_worker)) == 2
    changes = [command for command in one_worker.recorded() if command in (CREATE, DELETE)]
    assert changes == [DELETE, CREATE]


def test_a_run_with_something_to_mend_is_not_started_again(one_worker):
    assert one_worker.go(2, 0).returncode == 2
    assert len(runs_of(one_worker)) == 1


def test_a_run_that_fails_again_and_again_on_a_living_pod_is_given_up(one_worker):
    assert one_worker.go(*[1] * 9).returncode == 1
    assert len(runs_of(one_worker)) == 3


@pytest.fixture
def worker(place):
    """A worker on which a run lasts until it is asked to end."""
    repository = place.folder / "hgdpo_jax"
    (repository / "launch").mkdir(parents=True)
    (repository / "launch/tpu_worker.sh").write_bytes((LAUNCH / "tpu_worker.sh").read_bytes())
    (repository / "launch/tpu_worker.sh").chmod(0o755)
    waiting = "trap 'echo saved; exit 143' TERM; for _ in {1..600}; do sleep 0.1; done"
    place.command("python", waiting, folder="hgdpo_jax/.venv/bin")

    def run(*arguments):
        command = [str(repository / "launch/tpu_worker.sh"), *arguments]
        return subprocess.run(command, env=place.environment, capture_output=True, text=True, timeout=60)

    yield run
    run("stop")


def test_a_worker_runs_one_main_at_a_time(worker, place):
    assert worker("running").returncode == 1
    worker("start", "--stage=first")
    assert worker("running").returncode == 0
    assert "under way" in worker("start", "--stage=second").stdout
    worker("stop")
    assert worker("running").returncode == 1
    assert [command[-1] for command in place.recorded()] == ["--stage=first"]


def test_a_stopped_run_has_saved_and_its_status_is_told(worker):
    worker("start", "--stage=first")
    time.sleep(0.3)
    worker("stop")
    finished = worker("follow")
    assert finished.returncode == 143
    assert re.search(r"^\[\S+\] saved$", finished.stdout, re.MULTILINE)


def test_a_run_that_ended_with_its_machine_is_an_error(worker, place):
    worker("start", "--stage=first")
    process = int((place.folder / "hgdpo_jax/run/pid").read_text())
    os.killpg(process, signal.SIGKILL)
    finished = worker("follow")
    assert finished.returncode == 1
    assert "never began" in finished.stderr
