"""The training loop that every training stage runs."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hgdpo_jax import hosts
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.errors import UserError
from hgdpo_jax.run_log import RunLog, progress
from hgdpo_jax.sharding import introduce, shard_batch, shard_parameters
from hgdpo_jax.termination import Terminated, kept_for_later, raised_on_sigterm

State = Any
Batch = Any
Scalars = dict[str, float]


def train(
    state: State,
    step_function: Callable[[State, Batch], tuple[State, dict[str, jax.Array]]],
    batch_at: Callable[[int], Batch],
    *,
    mesh: Mesh,
    steps: int,
    checkpoints: Checkpoints,
    log: RunLog,
    save_every: int,
    description: str,
    evaluate: Callable[[State, int], Scalars] | None = None,
    evaluate_every: int = 0,
    samples_per_step: int = 0,
    unit: str = "step",
) -> State:
    """Runs `step_function` from the last checkpoint (or `state`) to `steps`, and returns the state it ends with.

    The state lies on the mesh as `shard_parameters` places it, and a batch is divided over it. `batch_at` gives this
    process's rows of a batch, a function of the step alone, so that a resumed run repeats the uninterrupted one.
    Scalars are fetched one step late: the host never waits for the device. After SIGTERM the step that is being made,
    or the one behind it where several processes have to agree, is saved, and Terminated raised. A step is saved before
    it is evaluated: an evaluation that was cut short is all that the next run repeats. Raises UserError where loss or
    gradient is not finite.
    """
    given = shard_parameters(state, mesh)
    start, state = checkpoints.restore(given)
    if start:
        # As the first step would have used it up: of a whole U-Net it is gigabytes.
        jax.tree.map(lambda leaf: leaf.delete(), given)
    log.resume(start)
    # Whoever is ahead saves, and who comes behind must not take that for the start.
    hosts.wait()
    introduce(mesh)
    agreed = hosts.Agreement()
    pending: tuple[int, dict[str, jax.Array]] | None = None

    def write(pending) -> None:
        step, device_scalars = pending
        scalars = {name: float(value) for name, value in jax.device_get(device_scalars).items()}
        # The gradient's too: it can fail alone, and the weights that it makes would be saved before the next loss.
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(scalars[name]):
                what = f"{description}: the {name.replace('_', ' ')} is {scalars[name]} at step {step}"
                if step == 1:
                    # No learning rate has had any part in it.
                    raise UserError(f"{what}, before the first update; check the weights and the training data")
                raise UserError(
                    f"{what}; lower the learning rate (the last good checkpoint, step "
                    f"{max(checkpoints.steps(), default=0)}, is kept)"
                )
        if samples_per_step:
            scalars[f"{unit}s_per_second"] = bar.rate() * samples_per_step
        log.scalars(step, scalars)
        bar.note(loss=scalars["loss"])

    def is_evaluated(step: int) -> bool:
        return evaluate is not None and (step % evaluate_every == 0 or step == steps)

    def measure(state: State, step: int) -> None:
        assert evaluate is not None
        with raised_on_sigterm():
            # It may have come while the step was waited for.
            if sigterm_came():
                raise Terminated
            measured = evaluate(state, step)
        log.scalars(step, measured)
        log.flush()

    with (
        kept_for_later() as sigterm_came,
        contextlib.closing(log),
        contextlib.closing(checkpoints),
        progress(total=steps, initial=start, description=description, unit="step") as bar,
    ):
        # Once by its step, once more by its evaluation.
        if start and is_evaluated(start) and log.count(start) < 2:
            measure(state, start)
        for step in range(start, steps):
            state, scalars = step_function(state, shard_batch(batch_at(step), mesh))
            stop = agreed(sigterm_came())
            if pending:
                write(pending)
            pending = (step + 1, scalars)
            done = step + 1
            if is_evaluated(done) or done % save_every == 0 or done == steps or stop:
                write(pending)
                pending = None
                # A run that goes on from here does not log these steps again.
                log.flush()
                checkpoints.save(done, state)
                if is_evaluated(done) and not stop:
                    measure(state, done)
            bar.update(1)
            if stop:
                raise Terminated
        if sigterm_came():
            raise Terminated
    return state
