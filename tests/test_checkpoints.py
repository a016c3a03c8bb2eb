"""Checkpoints: what is kept, what comes back, and what a kill leaves behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from hgdpo_jax.checkpoints import Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    yield checkpoints
    checkpoints.close()


def test_there_is_no_step_before_the_first_save(checkpoints):
    template = {"w": jnp.zeros(2)}
    assert checkpoints.steps() == []
    assert checkpoints.restore(template) == (0, template)


def test_the_last_two_are_kept_and_the_last_comes_back(checkpoints):
    for step in (1, 2, 5, 6):
        checkpoints.save(step, {"w": jnp.full(2, step)})
    step, state = checkpoints.restore({"w": jnp.zeros(2, int)})
    assert step == 6 and checkpoints.steps() == [5, 6]
    np.testing.assert_array_equal(state["w"], 6)


def test_removed_steps_are_saved_again(checkpoints):
    for step in (1, 2):
        checkpoints.save(step, {"w": jnp.full(2, step)})
    checkpoints.remove(2)
    assert checkpoints.steps() == [1]
    checkpoints.save(2, {"w": jnp.full(2, 7)})
    np.testing.assert_array_equal(checkpoints.restore({"w": jnp.zeros(2, int)})[1]["w"], 7)


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest_file(folder):
    """The arrays."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def metadata_file(folder):
    return folder / "default" / "manifest.ocdbt"


@pytest.mark.parametrize("damage", [alter, truncate, Path.unlink])
@pytest.mark.parametrize("file_in", [largest_file, metadata_file])
def test_a_damaged_checkpoint_is_named_in_one_line_and_the_one_before_it_used(tmp_path, capfd, damage, file_in):
    # Not compressible: the largest file is that of the arrays.
    values = {step: {"w": jax.random.normal(jax.random.key(step), (64, 64))} for step in (3, 6, 9)}
    writer = Checkpoints(tmp_path)
    for step in (3, 6):
        writer.save(step, values[step])
    writer.close()
    damage(file_in(tmp_path / "6"))
    checkpoints = Checkpoints(tmp_path)
    step, state = checkpoints.restore({"w": jnp.zeros((64, 64))})
    assert step == 3 and checkpoints.steps() == [3]
    np.testing.assert_array_equal(state["w"], values[3]["w"])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{tmp_path / '6'} is damaged" in lines[0] and "from step 3" in lines[0], lines
    for step in (6, 9):
        checkpoints.save(step, values[step])
    step, state = checkpoints.restore({"w": jnp.zeros((64, 64))})
    np.testing.assert_array_equal(state["w"], values[9]["w"])
    checkpoints.close()


def test_where_all_are_damaged_training_starts_anew(tmp_path, capfd):
    writer = Checkpoints(tmp_path)
    for step in (3, 6):
        writer.save(step, {"w": jnp.ones((64, 64))})
    writer.close()
    for step in ("3", "6"):
        metadata_file(tmp_path / step).unlink()
    template = {"w": jnp.zeros((64, 64))}
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(template) == (0, template)
    assert capfd.readouterr().err.splitlines()[-1].endswith("training starts anew")
    checkpoints.close()


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_a_damaged_one(checkpoints, monkeypatch):
    checkpoints.save(3, {"w": jnp.ones(2)})

    def refuse(*_, **__):
        raise ValueError("reading failed") from PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(ocp.CheckpointManager, "restore", refuse)
        with pytest.raises(ValueError, match="reading failed"):
            checkpoints.restore({"w": jnp.zeros(2)})
    assert checkpoints.restore({"w": jnp.zeros(2)})[0] == 3


def test_keys_with_dots_and_optimizer_states_come_back_as_they_were(tmp_path):
    adapter = {
        "mid_block.attn1.to_out.0": {"down": jnp.ones((3, 2)), "up": jnp.full((2, 3), 2.0)},
        "mid_block.attn1.to_q": {"down": jnp.full((3, 2), 3.0), "up": jnp.zeros((2, 3))},
    }
    optimizer = optax.chain(optax.identity(), optax.adamw(1e-3))
    state = {"adapter": adapter, "optimizer": optimizer.init(adapter), "step": jnp.int32(7)}
    writer = Checkpoints(tmp_path)
    writer.save(1, state)
    writer.close()
    _, restored = Checkpoints(tmp_path).restore(jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_closed_one_opens_again(checkpoints):
    checkpoints.save(1, {"w": jnp.ones(2)})
    checkpoints.close()
    np.testing.assert_array_equal(checkpoints.restore({"w": jnp.zeros(2)})[1]["w"], np.ones(2))


def test_a_step_that_donates_the_state_does_not_reach_what_is_being_saved(checkpoints):
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = step({"w": jnp.zeros((1000, 1000))})
    checkpoints.save(1, state)
    for _ in range(10):
        state = step(state)
    np.testing.assert_array_equal(checkpoints.restore(state)[1]["w"], np.ones((1000, 1000)))


SAVE_FOREVER = """
import itertools, sys
import jax.numpy as jnp
from hgdpo_jax.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
start = max(checkpoints.steps(), default=0)
for step in itertools.count(start + 1):
    checkpoints.save(step, {"w": jnp.full((100, 100), step)})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_the_last_survives_a_kill_at_any_moment(tmp_path):
    moment = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        first = int(process.stdout.readline())
        time.sleep(moment.random())
        os.kill(process.pid, signal.SIGKILL)
        seen = [first, *map(int, process.communicate()[0].split())]
        checkpoints = Checkpoints(tmp_path)
        step, state = checkpoints.restore({"w": jnp.zeros((100, 100), int)})
        # A save waits for the one before it.
        assert step >= seen[-1] - 1
        np.testing.assert_array_equal(state["w"], step)
        checkpoints.close()


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(1, {"a": jnp.zeros(10)})
    assert list((tmp_path / "run").iterdir()) == []


MANY_SHARDED_ARRAYS = """
import sys
import jax, numpy as np
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.sharding import shard_parameters, training_mesh

state = shard_parameters([np.full((256, 256), i, np.float32) for i in range(200)], training_mesh(fsdp=2))
checkpoints = Checkpoints(sys.argv[1])
for step in (1, 2):
    checkpoints.save(step, state)
step, restored = checkpoints.restore(state)
assert step == 2 and all(map(np.array_equal, state, restored))
checkpoints.close()
"""


def test_many_sharded_arrays_are_saved_on_a_cpu_with_as_many_threads_as_devices(tmp_path):
    # The size of XLA's thread pool, otherwise the number of cores.
    environment = os.environ | {
        "NPROC": "2",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-c", MANY_SHARDED_ARRAYS, str(tmp_path / "checkpoints")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
