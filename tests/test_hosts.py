"""Two processes on one machine run the whole method; one is killed in training, and both are started again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from hgdpo_jax import hosts
from hgdpo_jax.data.pairs import open_pairs
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion import load_adapter
from hgdpo_jax.weights.tensor_files import load_tensors

ROOT = Path(__file__).parent.parent
CONFIG = """
from hgdpo_jax.base_config import base_config

def get_config():
    config = base_config()
    config.name = "small"
    config.dtype = "float32"
    config.cpu_devices = {devices}
    config.weights.base, config.weights.scorer = {base!r}, {scorer!r}
    config.evaluate.scorers = ("judge=" + {judge!r},)
    # Three prompts and two hosts: shares are not equal.
    config.prompts.train = config.prompts.validation = config.prompts.test = {prompts!r}
    config.prompts.validation_count = config.prompts.test_count = 3
    # So weak that a loss does not magnify the last digit of its errors.
    config.dpo.beta = 100.0
    config.pool.update(size=3, steps=3, width=48, height=64, block=2, device_batch=2)
    config.train.update(steps=6, batch_size=4, device_batch=1, checkpoint_every=2, evaluate_every=3)
    config.train.update(learning_rate=1e-3, warmup_steps=1)
    config.sample.seeds = config.evaluate.seeds = 1
    return config
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_base, tiny_scorer, tiny_judge):
    """Starts the experiment in `count` processes, which have two devices together; `last` is for the last one alone."""
    folder = tmp_path_factory.mktemp("hosts")
    running: list[subprocess.Popen] = []
    (folder / "prompts.txt").write_text("".join(f"person number {i}\n" for i in range(7)))

    def start(workdir: str, count: int, program=("-m", "hgdpo_jax.main"), last=()) -> list[subprocess.Popen]:
        names = {"base": str(tiny_base), "scorer": str(tiny_scorer), "judge": str(tiny_judge)}
        config = folder / f"config_{count}.py"
        config.write_text(CONFIG.format(devices=2 // count, prompts=str(folder / "prompts.txt"), **names))
        command = [sys.executable, *program, f"--config={config}", f"--workdir={folder / workdir}"]
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
        started = [
            subprocess.Popen(
                [*command, *(last if i == count - 1 else [])],
                cwd=ROOT,
                env=environment
                | (
                    {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(i)}
                    if count > 1
                    else {}
                ),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i in range(count)
        ]
        running.extend(started)
        return started

    start.folder = folder
    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def finish(processes: list[subprocess.Popen]) -> list[str]:
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def outputs(start):
    """What the second run of the two processes printed, after the first was killed in training."""
    processes = start("two", 2)
    log = start.folder / "two/runs/small/train_policy/log.jsonl"
    deadline = time.monotonic() + 600
    while not log.is_file() or len(log.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and processes[0].poll() is None, processes[0].communicate()[0]
        time.sleep(0.02)
    for process in reversed(processes):
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    return finish(start("two", 2))


@pytest.fixture(scope="module")
def folders(start, outputs):
    """Workdirs of one process and of the two."""
    finish(start("one", 1))
    return start.folder / "one", start.folder / "two"


def test_only_the_first_host_tells_how_far_it_is(outputs):
    first, second = outputs
    assert re.search(r"train_policy +done in", first) and "report: " in first
    assert "done" not in second and "running" not in second


def test_both_hosts_drew_a_share_of_the_pool(folders):
    rates = {path.name for path in (folders[1] / "rates").glob("generate_pool-*/*.json")}
    assert rates == {"host-0-of-2.json", "host-1-of-2.json"}


def test_latents_scores_and_pairs_are_those_of_a_single_process(folders):
    one, two = (sorted(folder.glob("pools/**/*.safetensors")) for folder in folders)
    assert [path.relative_to(folders[0]) for path in one] == [path.relative_to(folders[1]) for path in two]
    for ours, theirs in zip(one, two, strict=True):
        for name, values in load_tensors(ours)[0].items():
            # A program for one device adds up in another order than one for two; latents are stored in float16.
            np.testing.assert_allclose(values, load_tensors(theirs)[0][name], rtol=2e-3, atol=2e-3)
    one, two = (open_pairs(folder / "runs/small/select_pairs") for folder in folders)
    assert len(one) == len(two) == 7
    for i in range(len(one)):
        assert all(one[i][name] == two[i][name] for name in ("prompt", "winner_index", "loser_index"))


def test_lora_is_that_of_a_single_process(folders):
    one, two = (load_adapter(folder / "runs/small/export_adapter/hgdpo_lora.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    ups = [np.concatenate([adapter[module]["up"].ravel() for module in one]) for adapter in (one, two)]
    # Adam makes whole steps of gradients near zero, whose sign is a matter of the last digits: a few elements differ.
    assert np.linalg.norm(ups[0] - ups[1]) < 0.03 * np.linalg.norm(ups[0])
    assert np.quantile(np.abs(ups[0] - ups[1]), 0.97) < 1e-4 and np.abs(ups[0]).max() > 2e-3


def test_each_step_is_logged_once(folders):
    logs = [(folder / "runs/small/train_policy/log.jsonl").read_text().splitlines() for folder in folders]
    one, two = ([json.loads(line) for line in log] for log in logs)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_the_report_holds_all_images(folders):
    summaries = [
        json.loads((folder / "runs/small/evaluate_policy/report/summary.json").read_text()) for folder in folders
    ]
    assert [summary["prompts"] for summary in summaries] == [3, 3]
    images = [sorted(path.name for path in folder.glob("runs/small/sample_images/images/*")) for folder in folders]
    assert images[0] == images[1] and len(images[0]) == 6


def test_hosts_with_unequal_settings_all_end_with_the_difference(start):
    processes = start("unequal", 2, last=["--config.dpo.beta=1", "--config.train.learning_rate=0.5"])
    words = "process 1 differs from process 0: config.train.learning_rate 0.001 -> 0.5, config.dpo.beta 100.0 -> 1.0;"
    for output, process in [(process.communicate(timeout=300)[0], process) for process in processes]:
        assert process.returncode == 2 and f"error: {words}" in output, output


REFUSALS = """
from hgdpo_jax import hosts
from hgdpo_jax.errors import UserError

def refuse(words):
    raise UserError(words)

hosts.start()
said = [str(hosts.gather({"process": hosts.index(), "long": "x" * hosts.index()}))]
for call in (
    lambda: hosts.together(lambda: refuse("no file") if hosts.index() else None),
    lambda: hosts.together(lambda: refuse("no such stage")),
    lambda: hosts.by_first(lambda: refuse("in use")),
):
    try:
        call()
    except UserError as error:
        said.append(str(error))
print(" | ".join(said), flush=True)
"""


def test_what_one_host_refuses_is_raised_on_all(start):
    outputs = finish(start("refusals", 2, program=["-c", REFUSALS]))
    gathered = [{"process": 0, "long": ""}, {"process": 1, "long": "x"}]
    assert {output.splitlines()[-1] for output in outputs} == {
        f"{gathered} | process 1: no file | no such stage | in use"
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_processes": 2}, "give also --coordinator_address, --process_id"),
        (
            {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 2},
            "process_id is 2, expected 0 to 1",
        ),
        (
            {"coordinator_address": "localhost", "num_processes": 2, "process_id": 0},
            "coordinator_address is 'localhost', expected HOST:PORT",
        ),
    ],
)
def test_what_cannot_be_a_process_of_several_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        hosts.start(**given)


def test_a_program_that_runs_several_experiments_joins_once(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("joined again"))
    hosts.start("127.0.0.1:1", num_processes=2, process_id=0)


def test_a_process_number_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID is 'first'"):
        hosts.start()


def test_a_process_that_cannot_reach_the_first_one_says_so(monkeypatch):
    monkeypatch.setattr(hosts, "_PATIENCE", 0)
    with pytest.raises(TimeoutError, match="process 1 cannot reach process 0 at 127.0.0.1:9 .*refused"):
        hosts.start("127.0.0.1:9", 2, 1)


@pytest.fixture
def slurm(monkeypatch):
    """Sets the environment of a task of 2 nodes; returns what JAX is asked for."""
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: asked.update(options))

    def set_environment(**values):
        for name in [name for name in os.environ if name.startswith(("SLURM_", "JAX_LOCAL", "CUDA_VISIBLE"))]:
            monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return asked

    return set_environment


@pytest.mark.parametrize(
    ("tasks", "gpus", "environment", "expected"),
    [
        (2, 8, {}, []),
        (2, 0, {}, []),
        (4, 8, {"SLURM_LOCALID": "1"}, [4, 5, 6, 7]),
        (4, 8, {"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, []),
        (4, 8, {"SLURM_LOCALID": "0", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, [0, 1, 2, 3]),
        (16, 8, {"SLURM_LOCALID": "3"}, [3]),
        (16, 8, {"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "3"}, []),
        (2, 8, {"JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
    ],
)
def test_the_tasks_of_a_slurm_node_share_all_its_gpus(slurm, tasks, gpus, environment, expected):
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_NODES": "2"}
    asked = slurm(SLURM_NTASKS=str(tasks), SLURM_GPUS_ON_NODE=str(gpus), **step, **environment)
    hosts.start()
    assert asked == {"local_device_ids": expected}


def test_a_slurm_job_of_several_tasks_without_srun_is_refused(slurm):
    asked = slurm(SLURM_NTASKS="2", SLURM_PROCID="0", SLURM_NNODES="1")
    with pytest.raises(UserError, match="2 tasks, but this process was not started by srun: type srun"):
        hosts.start()
    assert not asked


VIRTUAL_MACHINE = """
import glob
from hgdpo_jax import hosts
glob.glob = lambda pattern: ["/dev/vfio/12"] if "vfio" in pattern else []
hosts.start()
print(hosts.count(), hosts.devices())
"""


def test_devices_for_virtual_machines_are_not_taken_for_tpus():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    finished = subprocess.run([sys.executable, "-c", VIRTUAL_MACHINE], env=environment, capture_output=True, text=True)
    assert finished.stdout == "1 1 x cpu\n", finished.stderr


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="CUDA may be there")
@pytest.mark.parametrize("platform", ["cuda", "cdua"])
def test_a_platform_that_jax_lacks_is_refused(platform):
    environment = os.environ | {"JAX_PLATFORMS": platform}
    command = [sys.executable, "-c", "from hgdpo_jax import hosts; hosts.start()"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert f"UserError: JAX cannot use JAX_PLATFORMS={platform} (" in finished.stderr
