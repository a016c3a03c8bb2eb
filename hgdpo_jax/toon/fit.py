"""Training all weights of one network from the first step to the last, as every side stage does."""

from typing import Any

import jax

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.errors import UserError
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.toon.settings import Training
from hgdpo_jax.training.loop import train
from hgdpo_jax.training.optimizer import make_optimizer
from hgdpo_jax.training.state import initial_state, make_step


def fit(
    loss_function,
    parameters,
    batch_at,
    run: StageRun,
    training: Training,
    *,
    warmup_steps: int,
    average_decay: float = 0.99,
    frozen: Any = None,
    log: RunLog | None = None,
    **loop,
):
    """Moving average of the parameters after a training by AdamW on `loss_function(parameters, frozen, batch)`.

    The learning rate warms up, then falls to zero along a cosine; gradients are clipped to norm 1. Checkpoints and log
    lie in the run's folder. `loop` goes to `train`, which says what it raises. Raises UserError where there are
    several hosts.
    """
    if hosts.count() > 1:
        raise UserError("this stage trains a small network on one host: start it as a single process")
    optimizer = make_optimizer(
        learning_rate=training.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=training.steps,
        weight_decay=training.weight_decay,
        max_gradient_norm=1.0,
    )
    state = train(
        initial_state(parameters, optimizer),
        make_step(loss_function, optimizer, average_decay=average_decay, frozen=frozen),
        batch_at,
        mesh=data_mesh(),
        steps=training.steps,
        save_every=training.save_every,
        description=run.name,
        checkpoints=Checkpoints(run.folder / "checkpoints"),
        log=log or RunLog(run.folder),
        **loop,
    )
    return jax.device_get(state["average"])
