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
from hgdpo_jax.run_log import RunLog, progress, report_rate
from hgdpo_jax.sharding import introduce, shard_batch, shard_parameters
from hgdpo_jax.termination import Terminated, kept_for_later, raised_on_sigterm
from hgdpo_jax.training.step_rate import StepRate

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
    """Runs `step_function` from the last checkpoint, or from `state`, to step `steps`; returns the final state.

    The state is placed on the mesh by `shard_parameters`, batches by `shard_batch`. `batch_at` returns this process's
    rows of a batch as a function of the step alone, so that a resumed run repeats the uninterrupted one. Scalars are
    fetched one step late, so that the host never waits for the device. With `samples_per_step` they include the
    training's own rate as "{unit}s_per_second", except for the first step of the process. After SIGTERM the current
    step is saved, or the next one if several processes have to agree, and Terminated is raised. A step is saved before
    it is evaluated, so that the next run repeats only an interrupted evaluation. Raises UserError if loss or gradient
    are not finite.
    """
    given = shard_parameters(state, mesh)
    start, state = checkpoints.restore(given)
    if start:
        # The first step would have donated it: for all weights of a U-Net it takes gigabytes.
        jax.tree.map(lambda leaf: leaf.delete(), given)
    log.resume(start)
    # Barrier: a slower process must not resume from a checkpoint that a faster one has just written.
    hosts.wait()
    introduce(mesh)
    agreed, rate = hosts.Agreement(), StepRate()
    pending: tuple[int, dict[str, jax.Array]] | None = None

    def write(pending) -> None:
        step, device_scalars = pending
        scalars = {name: float(value) for name, value in jax.device_get(device_scalars).items()}
        # Also the gradient: it can fail alone, and the resulting weights would be saved before the next loss.
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(scalars[name]):
                what = f"{description}: the {name.replace('_', ' ')} is {scalars[name]} at step {step}"
                if step == 1:
                    # The learning rate has not had any effect yet.
                    raise UserError(f"{what}, before the first update; check the weights and the training data")
                raise UserError(
                    f"{what}; lower the learning rate (the last good checkpoint, step "
                    f"{max(checkpoints.steps(), default=0)}, is kept)"
                )
        rate.step_done()
        if samples_per_step and (per_second := rate.per_second()):
            scalars[f"{unit}s_per_second"] = per_second * samples_per_step
            report_rate(description, per_second * samples_per_step)
        log.scalars(step, scalars)
        bar.note(loss=scalars["loss"])

    def is_evaluated(step: int) -> bool:
        return evaluate is not None and (step % evaluate_every == 0 or step == steps)

    def measure(state: State, step: int) -> None:
        assert evaluate is not None
        with raised_on_sigterm():
            # SIGTERM may have come while the step was running.
            if sigterm_came():
                raise Terminated
            measured = evaluate(state, step)
        log.scalars(step, measured)
        log.flush()

    with (
        kept_for_later() as sigterm_came,
        contextlib.closing(log),
        contextlib.closing(checkpoints),
        progress(total=steps, initial=start, description=description, unit="step", reported=False) as bar,
    ):
        # A step logs once, and its evaluation once more.
        if start and is_evaluated(start) and log.count(start) < 2:
            measure(state, start)
        for step in range(start + 1, steps + 1):
            state, scalars = step_function(state, shard_batch(batch_at(step - 1), mesh))
            stop = agreed(sigterm_came())
            if pending:
                write(pending)
            pending = step, scalars
            if is_evaluated(step) or step % save_every == 0 or step == steps or stop:
                write(pending)
                pending = None
                # A run that resumes from this checkpoint does not log these steps again.
                log.flush()
                checkpoints.save(step, state)
                if is_evaluated(step) and not stop:
                    measure(state, step)
                rate.resume()
            bar.update(1)
            if stop:
                raise Terminated
        if sigterm_came():
            raise Terminated
    return state
