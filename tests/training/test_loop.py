import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.errors import UserError
from hgdpo_jax.run_log import RunLog, read_scalars
from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.termination import Terminated
from hgdpo_jax.training.loop import train
from hgdpo_jax.training.optimizer import make_optimizer
from hgdpo_jax.training.state import initial_state, make_step

TARGET = np.linspace(-1, 1, 8, dtype=np.float32)


def loss_function(parameters, frozen, batch):
    return jnp.mean(jnp.square(parameters["x"] - frozen - 0.01 * batch)), {}


def run(folder, steps, batch_at=lambda step: np.float32(step), evaluate=None, loss_function=loss_function, log=None):
    optimizer = make_optimizer(learning_rate=0.1, warmup_steps=2)
    return train(
        initial_state({"x": jnp.zeros(8)}, optimizer),
        make_step(loss_function, optimizer, average_decay=0.9, frozen=TARGET),
        batch_at,
        mesh=data_mesh(),
        steps=steps,
        checkpoints=Checkpoints(folder / "checkpoints"),
        log=log or RunLog(folder),
        save_every=3,
        description="test",
        evaluate=evaluate,
        evaluate_every=4,
    )


def test_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    whole = run(tmp_path / "whole", 10)
    run(tmp_path / "parts", 5)
    resumed = run(tmp_path / "parts", 10)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    whole_log, parts_log = read_scalars(tmp_path / "whole"), read_scalars(tmp_path / "parts")
    assert [line["step"] for line in parts_log] == list(range(1, 11))
    assert [line["loss"] for line in parts_log] == [line["loss"] for line in whole_log]


def test_sigterm_saves_the_step_being_made_and_the_next_run_ends_as_if_nothing_had_been(tmp_path):
    def batch_at(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return np.float32(step)

    whole = run(tmp_path / "whole", 10)
    with pytest.raises(Terminated):
        run(tmp_path / "parts", 10, batch_at)
    assert Checkpoints(tmp_path / "parts/checkpoints").steps()[-1] == 5
    jax.tree.map(np.testing.assert_array_equal, whole, run(tmp_path / "parts", 10))
    losses = [[line["loss"] for line in read_scalars(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("where", ["step", "log", "evaluation"])
@pytest.mark.parametrize("signalled", [4, 8, 10])
def test_sigterm_at_a_step_that_is_evaluated_saves_it_and_leaves_the_evaluation_to_the_next_run(
    tmp_path, where, signalled
):
    evaluated = []

    def terminate(step, *, at):
        if (where, step) == (at, signalled):
            os.kill(os.getpid(), signal.SIGTERM)

    class Log(RunLog):
        # Called when the step is done: too late for its own look at the signal.
        def scalars(self, step, values):
            terminate(step, at="log")
            super().scalars(step, values)

    def batch_at(step):
        terminate(step + 1, at="step")
        return np.float32(step)

    def evaluate(state, step):
        terminate(step, at="evaluation")
        evaluated.append(step)
        return {"score": -abs(step - 4.0)}

    with pytest.raises(Terminated):
        run(tmp_path, 10, batch_at, evaluate, log=Log(tmp_path))
    assert evaluated == [step for step in (4, 8, 10) if step < signalled]
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == signalled
    run(tmp_path, 10, evaluate=lambda state, step: {"score": -abs(step - 4.0)})
    lines = read_scalars(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    assert [line["step"] for line in lines if "score" in line] == [4, 8, 10]


def test_a_run_that_goes_on_from_an_evaluated_step_does_not_evaluate_it_again(tmp_path):
    evaluated = []

    def evaluate(state, step):
        evaluated.append(step)
        return {"score": 0.0}

    for _ in range(2):
        run(tmp_path, 8, evaluate=evaluate)
    assert evaluated == [4, 8]


def test_resumed_run_gives_back_the_memory_of_what_it_was_started_with(tmp_path):
    optimizer = make_optimizer(learning_rate=0.1)
    for steps in (2, 4):
        state = initial_state({"x": jnp.zeros(8)}, optimizer)
        train(
            state,
            make_step(loss_function, optimizer, average_decay=0.9, frozen=TARGET),
            lambda step: np.float32(step),
            mesh=data_mesh(),
            steps=steps,
            checkpoints=Checkpoints(tmp_path / "checkpoints"),
            log=RunLog(tmp_path),
            save_every=2,
            description="test",
        )
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    def batch_at(step):
        return np.float32(np.nan if step == 7 else step)

    with pytest.raises(UserError, match=r"loss is nan at step 8.*step 6"):
        run(tmp_path, 20, batch_at)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 6


def test_loss_that_is_not_finite_before_the_first_update_is_not_put_down_to_the_learning_rate(tmp_path):
    with pytest.raises(UserError, match="loss is nan at step 1, before the first update; check the weights"):
        run(tmp_path, 4, lambda step: np.float32(np.nan))


def test_gradient_that_is_not_finite_is_found_before_the_weights_it_makes_are_saved(tmp_path):
    def steep_at_step_9(parameters, frozen, batch):
        loss, scalars = loss_function(parameters, frozen, batch)
        return loss + jnp.sqrt(jnp.where(batch == 8, 0 * jnp.sum(parameters["x"]), 1)), scalars

    with pytest.raises(UserError, match=r"gradient norm is nan at step 9.*step 6"):
        run(tmp_path, 20, loss_function=steep_at_step_9)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 6


def test_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_and_ends_as_the_uninterrupted_one(
    tmp_path, capsys
):
    whole = run(tmp_path / "whole", 10)
    run(tmp_path / "parts", 8)
    folder = tmp_path / "parts/checkpoints"
    (folder / "8/default/manifest.ocdbt").write_bytes(b"")
    resumed = run(tmp_path / "parts", 10)
    assert "from step 6" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    logs = [[(line["step"], line["loss"]) for line in read_scalars(tmp_path / name)] for name in ("whole", "parts")]
    assert logs[0] == logs[1] and len(logs[0]) == 10


def test_warmup_rises_and_decay_ends_at_zero():
    parameters = {"x": jnp.zeros(1)}
    for options, expected in (
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0]),
        ({"decay_steps": 4}, [1.0, 0.8535534, 0.5, 0.1464466, 0.0]),
    ):
        optimizer = make_optimizer(learning_rate=1.0, **options)
        state, sizes = optimizer.init(parameters), []
        for _ in range(5):
            updates, state = optimizer.update({"x": jnp.ones(1)}, state, parameters)
            sizes.append(-float(updates["x"][0]))
        # Adam's first steps on a constant gradient have the size of the learning rate, but for its epsilon.
        np.testing.assert_allclose(sizes, expected, atol=1e-5)
