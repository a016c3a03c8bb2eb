"""Training all weights of one network from the first step to the last, as every toon stage does."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.errors import UserError
from hgdpo_jax.random_keys import training_key
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.toon.settings import Training
from hgdpo_jax.training.loop import train
from hgdpo_jax.training.optimizer import make_optimizer
from hgdpo_jax.training.state import initial_state, make_step


def initial_parameters(network: nn.Module, seed: int, *inputs) -> dict:
    """Random parameters of a network that takes such inputs."""
    return jax.jit(network.init)(jax.random.key(seed), *inputs)["params"]


def fit(
    loss_function,
    parameters,
    draw_batch: Callable[[np.random.Generator, jax.Array], Any],
    run: StageRun,
    training: Training,
    seed: int,
    *,
    warmup_steps: int = 0,
    average_decay: float = 0.99,
    frozen: Any = None,
    **loop,
):
    """Moving average of the parameters after a training by AdamW on `loss_function(parameters, frozen, batch)`.

    `draw_batch` gets a generator and a key of its own for each step. The learning rate warms up over `warmup_steps`,
    by default a twentieth of all, then falls to zero along a cosine; gradients are clipped to norm 1. Checkpoints and
    log are written to the run's folder. `loop` goes to `train`, which lists the errors that it raises. Raises
    UserError where there are several processes.
    """
    if hosts.count() > 1:
        raise UserError(
            f"{run.name} trains a small network on one host, expected a single process: start it without others"
        )
    optimizer = make_optimizer(
        learning_rate=training.learning_rate,
        warmup_steps=warmup_steps or training.steps // 20,
        decay_steps=training.steps,
        weight_decay=training.weight_decay,
        max_gradient_norm=1.0,
    )
    state = train(
        initial_state(parameters, optimizer),
        make_step(loss_function, optimizer, average_decay=average_decay, frozen=frozen),
        lambda step: draw_batch(np.random.default_rng((seed, step)), training_key(seed, step)),
        mesh=data_mesh(),
        steps=training.steps,
        save_every=training.save_every,
        description=run.name,
        checkpoints=Checkpoints(run.folder / "checkpoints"),
        **{"log": RunLog(run.folder)} | loop,
    )
    return jax.device_get(state["average"])
