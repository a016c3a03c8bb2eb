"""What trainings of an experiment share: their settings checked, their states and steps made."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import Mesh

from hgdpo_jax import hosts
from hgdpo_jax.adapters import lora
from hgdpo_jax.base_config import Experiment, Finetune, Train
from hgdpo_jax.data.batches import ShuffledBatches
from hgdpo_jax.data.pairs import open_pairs
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.model import Model
from hgdpo_jax.objectives import policy_losses
from hgdpo_jax.settings import numbers
from hgdpo_jax.training.accumulation import accumulating_step, accumulation_steps, with_numbers
from hgdpo_jax.training.finetune_step import finetune_step
from hgdpo_jax.training.optimizer import make_optimizer


@dataclasses.dataclass(frozen=True)
class Rows:
    """One kind of training rows: the stage that writes them, how to open its folder, and their latents."""

    stage: str
    open: Callable[[epath.Path], Any]
    latents: tuple[str, ...]


# By the names that objectives give their `rows`.
ROWS = {"pair": Rows("select_pairs", open_pairs, ("winner_latents", "loser_latents"))}


def check_training(options: Train | Finetune, name: str) -> None:
    """Raises UserError where one of the training settings called `name` cannot be."""
    if not (counts := hosts.device_counts()):
        return
    devices, local_devices = counts
    if options.batch_size % devices:
        raise UserError(
            f"config.{name}.batch_size is {options.batch_size}, expected a multiple of the {devices} devices"
        )
    if options.fsdp and local_devices % options.fsdp:
        raise UserError(
            f"config.{name}.fsdp is {options.fsdp}, expected 0 or a divisor of the {local_devices} local devices"
        )


def training_seed(experiment: Experiment) -> int:
    """The seed of what training draws."""
    return experiment.seed + experiment.train.seed


def optimizer_of(options: Train | Finetune) -> optax.GradientTransformation:
    """The optimiser that training settings describe."""
    return make_optimizer(
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        max_gradient_norm=options.max_gradient_norm,
        adam_bits=options.adam_bits,
    )


def _numbers_of(options: Train | Finetune) -> dict[str, float]:
    """The settings of the optimiser that do not change its structure."""
    return numbers(options) | {"warmup_steps": options.warmup_steps}


def training_batches(experiment: Experiment, model: Model, folder: epath.Path) -> ShuffledBatches:
    """Batches of the rows in `folder`, with only what an objective reads: latents, and the tokens of the prompt."""
    rows = ROWS[experiment.objective.rows]

    def transform(row):
        tokens = jax.tree.map(lambda leaf: leaf[0], model.tokenize([row["prompt"]]))
        return {"tokens": tokens, **{name: row[name] for name in rows.latents}}

    return ShuffledBatches(rows.open(folder), experiment.train.batch_size, training_seed(experiment), transform)


def make_training(experiment: Experiment, model: Model, mesh: Mesh):
    """A function that makes the initial state, and the training step (`with_numbers`) on a mesh.

    Experiments that differ only in numbers of objective and optimiser share one compiled program.
    """
    options, targets = experiment.train, model.lora_targets

    def initial_state():
        parameters = lora.initialize(jax.random.key(training_seed(experiment)), targets, experiment.adapter.rank)
        return {"parameters": parameters, "optimizer": optimizer_of(options).init(parameters)}

    # Weights are an argument of the loss: to hold them here would keep a copy beside the one that training divides.
    model = model.with_remat(options.remat).with_parameters(denoiser={}, text={})
    parts = accumulation_steps(options.batch_size, options.device_batch, mesh.size)

    def make_step(given):
        objective = dataclasses.replace(experiment.objective, **given["objective"])
        # The pool's images were drawn from this conditioning, and later ones will be: the LoRA learns from no other.
        losses = functools.partial(policy_losses, objective, model, clip_skip=experiment.pool.clip_skip)
        draw = functools.partial(objective.draw, timesteps=len(model.schedule.betas))
        return accumulating_step(
            losses, optimizer_of(dataclasses.replace(options, **given["train"])), draw, parts, mesh
        )

    return initial_state, with_numbers(
        make_step, {"objective": numbers(experiment.objective), "train": _numbers_of(options)}
    )


def make_finetuning(experiment: Experiment, model: Model, mesh: Mesh):
    """What makes a state of the denoiser's parameters, and the step (`with_numbers`) on a mesh."""
    options = experiment.finetune

    def initial_state(parameters):
        return {"parameters": parameters, "optimizer": optimizer_of(options).init(parameters)}

    parts = accumulation_steps(options.batch_size, options.device_batch, mesh.size)
    # Weights are an argument of the step: to hold them here would keep a copy beside the one that training divides.
    model = model.with_remat(options.remat).with_parameters(denoiser={})

    def make_step(given):
        return finetune_step(model, optimizer_of(dataclasses.replace(options, **given)), parts, mesh)

    return initial_state, with_numbers(make_step, _numbers_of(options))
