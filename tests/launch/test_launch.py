"""The launch scripts: linted, validated against published schemas, and run against recorders in place of clusters."""

import os
import re
import shlex
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
MAIN = ["--config=configs/mine.py", "--config.sample.prompts=('a b',)"]


@pytest.fixture
def place(tmp_path):
    """A folder to start scripts in; `place.command(name, script)` puts a program first on the PATH there."""
    return Place(tmp_path)


class Place:
    def __init__(self, folder):
        self.folder, self.record = folder, folder / "record"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_", "PYTHON"))
        }
        self.environment |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "RECORD": str(self.record)}
        (folder / "bin").mkdir()

    def command(self, name, script="", folder="bin"):
        """A program that writes its name and arguments down, quoted for a shell, and then runs `script`."""
        path = self.folder / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\n(printf "%q " {name} "$@" && echo) >>"$RECORD"\n{script}\n')
        path.chmod(0o755)
        return path

    def run(self, script, *arguments, **environment):
        command = [str(LAUNCH / script), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, timeout=60
        )

    def recorded(self):
        return commands(self.record.read_text()) if self.record.exists() else []


def commands(text):
    return [shlex.split(line) for line in text.splitlines()]


def tool(name):
    return str(Path(sysconfig.get_path("scripts")) / name)


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


# Linters and schemas


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    finished = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (0, "")


def test_hadolint_finds_nothing():
    finished = subprocess.run([tool("hadolint"), str(LAUNCH / "Dockerfile")], capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (0, "")


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes_workdir.yaml"])
def test_manifests_keep_to_the_published_schemas(name, version):
    for document in documents(name):
        kubernetes_validate.validate(document, version, strict=True)


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


# Kubernetes and its image


def test_pods_find_the_first_of_them_under_its_name():
    service, job = documents("kubernetes.yaml")
    container = job["spec"]["template"]["spec"]["containers"][0]
    variables = {variable["name"]: variable for variable in container["env"]}
    host, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert int(port) == service["spec"]["ports"][0]["port"]
    count = int(variables["JAX_NUM_PROCESSES"]["value"])
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == count


def test_pods_share_the_claim_and_run_a_config_that_there_is():
    (claim,), (_, job) = documents("kubernetes_workdir.yaml"), documents("kubernetes.yaml")
    pod = job["spec"]["template"]["spec"]
    claimed = [volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    config, workdir = (argument.split("=")[1] for argument in pod["containers"][0]["args"])
    assert (ROOT / config).is_file()
    assert [workdir] == [mounts[name] for name in claimed]


def test_the_image_gets_what_main_imports_and_nothing_that_is_left_out():
    copied = re.findall(r"^COPY (.*) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    kept = re.findall(r"^!(.*)$", (LAUNCH / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert names == set(kept) >= {"hgdpo_jax", "configs"}
    assert all((ROOT / name).exists() for name in names)


# SLURM


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


def test_one_process_of_a_job_has_all_gpus_of_its_node(place):
    place.command("srun", 'echo "$JAX_LOCAL_DEVICE_IDS"')
    finished = place.run("slurm.sh", "--", *MAIN, PYTHON="python", SLURM_JOB_ID="7", SLURM_GPUS_ON_NODE="4")
    assert finished.stdout == "0,1,2,3\n"


# Several processes on one machine


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


# TPU pods

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
    assert ["uv", "pip", "install", "--quiet", "--python", ".venv", "--editable", ".[gcs]", "jax[tpu]"] in (
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
