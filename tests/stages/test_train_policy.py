"""The best LoRA of a training run, in a file of its own."""

import numpy as np
import pytest

from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.stages.train_policy import BEST_FILE, Best, best_adapter, was_evaluated


def adapter(value):
    return {"mid_block.attentions.0.proj_in": {"down": np.full((4, 2), value), "up": np.full((2, 4), value)}}


def test_the_later_of_two_equally_good_steps_is_kept_also_when_the_run_goes_on_between_them(tmp_path):
    best = Best(tmp_path)
    assert not best.is_there()
    for step, win_rate in ((6, 0.5), (12, 0.75), (18, 0.25)):
        best.offer(adapter(step), step, win_rate)
    resumed = Best(tmp_path)
    assert resumed.is_there()
    for step, win_rate in ((24, 0.75), (30, 0.5)):
        resumed.offer(adapter(step), step, win_rate)
    kept, step = best_adapter(tmp_path)
    assert step == 24
    np.testing.assert_array_equal(kept["mid_block.attentions.0.proj_in"]["down"], 24)


@pytest.mark.parametrize("content", [lambda whole: whole[:-1], lambda whole: whole[:-1] + b"!"])
def test_a_damaged_file_is_not_taken_for_a_best(tmp_path, content):
    Best(tmp_path).offer(adapter(1), 6, 0.5)
    path = tmp_path / BEST_FILE
    path.write_bytes(content(path.read_bytes()))
    assert not Best(tmp_path).is_there()


def test_the_first_evaluated_step_counts_as_evaluated_only_after_its_evaluation(tmp_path):
    checkpoints, log = Checkpoints(tmp_path / "checkpoints"), RunLog(tmp_path)
    assert not was_evaluated(checkpoints, log, 6)
    checkpoints.save(6, {"w": np.zeros(2)})
    log.scalars(6, {"loss": 0.7})
    assert not was_evaluated(checkpoints, log, 6)
    log.scalars(6, {"validation_win_rate": 0.5})
    assert was_evaluated(checkpoints, log, 6)
    # Of step 8 nothing was evaluated, but it comes later.
    assert not was_evaluated(checkpoints, log, 8)
    checkpoints.save(9, {"w": np.zeros(2)})
    assert was_evaluated(checkpoints, log, 8)
    checkpoints.close()
    log.close()
