"""Checkpoints: what is kept, what comes back, and what a kill leaves behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hgdpo_jax.checkpoints import Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", best="win_rate")
    yield checkpoints
    checkpoints.close()


def steps_kept(checkpoints, template, up_to):
    checkpoints.wait_until_finished()
    kept = []
    for step in range(1, up_to + 1):
        try:
            checkpoints.restore(step, template)
            kept.append(step)
        except FileNotFoundError:
            pass
    return kept


def test_there_is_no_step_before_the_first_save(checkpoints):
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None


def test_the_last_and_the_best_are_kept_whether_saved_with_a_metric_or_not(checkpoints):
    for step, win_rate in enumerate([0.5, 0.7, 0.6, None, 0.2, None], start=1):
        checkpoints.save(step, {"w": jnp.full(2, step)}, {"win_rate": win_rate} if win_rate else None)
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (6, 2)
    assert steps_kept(checkpoints, {"w": jnp.zeros(2, int)}, 6) == [2, 6]


def test_of_two_equally_good_steps_the_later_is_the_best(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": jnp.zeros(1)}, {"win_rate": 0.5 if step < 3 else 0.4})
    assert checkpoints.best_step() == 2


def test_only_the_last_is_kept_where_no_metric_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": jnp.zeros(1)}, {"loss": 1.0})
    assert steps_kept(checkpoints, {"w": jnp.zeros(1)}, 3) == [3]
    assert checkpoints.best_step() is None
    checkpoints.close()


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
    restored = Checkpoints(tmp_path).restore(1, jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_closed_one_opens_again(checkpoints):
    checkpoints.save(1, {"w": jnp.ones(2)}, {"win_rate": 0.5})
    checkpoints.close()
    assert checkpoints.best_step() == 1
    np.testing.assert_array_equal(checkpoints.restore(1, {"w": jnp.zeros(2)})["w"], np.ones(2))


def test_a_step_that_donates_the_state_does_not_reach_what_is_being_saved(checkpoints):
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = step({"w": jnp.zeros((1000, 1000))})
    checkpoints.save(1, state)
    for _ in range(10):
        state = step(state)
    np.testing.assert_array_equal(checkpoints.restore(1, state)["w"], np.ones((1000, 1000)))


SAVE_FOREVER = """
import itertools, sys
import jax.numpy as jnp
from hgdpo_jax.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], best="win_rate")
start = checkpoints.latest_step() or 0
for step in itertools.count(start + 1):
    checkpoints.save(step, {"w": jnp.full((100, 100), step)}, {"win_rate": step * 7 % 5} if step % 2 else None)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_last_and_best_survive_a_kill_at_any_moment(tmp_path):
    moment = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        first = int(process.stdout.readline())
        time.sleep(moment.random())
        os.kill(process.pid, signal.SIGKILL)
        seen = [first, *map(int, process.communicate()[0].split())]
        checkpoints = Checkpoints(tmp_path, best="win_rate")
        # A save waits for the one before it.
        latest = checkpoints.latest_step() or 0
        assert latest >= seen[-1] - 1
        for step in {latest, checkpoints.best_step()} - {0, None}:
            np.testing.assert_array_equal(checkpoints.restore(step, {"w": jnp.zeros((100, 100), int)})["w"], step)
        checkpoints.close()


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(1, {"a": jnp.zeros(10)})
    assert list((tmp_path / "run").iterdir()) == []
