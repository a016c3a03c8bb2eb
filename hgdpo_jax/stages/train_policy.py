"""Trains the LoRA on the pairs by the objective of the experiment (HG-DPO, Sec. 3.2)."""

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.checkpoints import Checkpoints, saved_steps
from hgdpo_jax.errors import warn
from hgdpo_jax.experiment.drawing import drawing_settings
from hgdpo_jax.experiment.models import check_base, load_base
from hgdpo_jax.experiment.prompts import number_of_prompts, prompts_fingerprint, validation_prompts
from hgdpo_jax.experiment.scoring import scoring_settings
from hgdpo_jax.experiment.training import ROWS, check_training, make_training, training_batches, training_seed
from hgdpo_jax.experiment.validation import Validation
from hgdpo_jax.random_keys import training_key
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.settings import decisive
from hgdpo_jax.sharding import on_each_device, shard_parameters, training_mesh
from hgdpo_jax.training.best import BEST_FILE, has_best, keep_best, was_evaluated
from hgdpo_jax.training.loop import train

NEEDS = ("weights.base", "weights.scorer", "prompts.validation")
EVERY_HOST = True


def inputs(experiment: Experiment) -> tuple[str, ...]:
    return (ROWS[experiment.objective.rows].stage,)


def settings(experiment: Experiment) -> dict:
    objective, options = experiment.objective, experiment.train
    return {
        **drawing_settings(experiment),
        **scoring_settings(experiment),
        "adapter": decisive(experiment.adapter),
        "objective": objective.name(),
        "objective.revision": objective.revision,
        objective.name(): decisive(objective),
        "train": decisive(options) | ({"device_batch": options.device_batch} if objective.batch_means else {}),
        "prompts.validation": prompts_fingerprint(validation_prompts(experiment)),
    }


def plan(experiment: Experiment, run: StageRun) -> str:
    prompts, rows = number_of_prompts(experiment, "train"), f"{experiment.objective.rows}s"
    steps, batch_size = experiment.train.steps, experiment.train.batch_size
    words = f"{steps:,} steps of {batch_size} {rows}"
    return f"{words}, of at most {prompts:,}: each {steps * batch_size / prompts:.3g} times" if prompts else words


def check(experiment: Experiment) -> None:
    """Raises UserError if a setting of the training is invalid, or the base cannot draw its images."""
    check_training(experiment.train, "train")
    check_base(experiment)


def left(experiment: Experiment, run: StageRun) -> float:
    """The share of the steps that no checkpoint holds yet, by the names of checkpoints."""
    return 1 - max(saved_steps(run.folder / "checkpoints"), default=0) / experiment.train.steps


def run(experiment: Experiment, run: StageRun) -> None:
    model = load_base(experiment)
    batches = training_batches(experiment, model, run.local_input(*inputs(experiment)))
    mesh = training_mesh(experiment.train.fsdp)
    initial_state, step_function = make_training(experiment, model, mesh)
    state = initial_state()
    del initial_state
    base = shard_parameters({name: model.parameters[name] for name in ("denoiser", "text")}, mesh)
    # Devices that share the base hold full copies only while they draw.
    model = model.with_parameters(denoiser={}, text={})

    def batch_at(step):
        return batches[step], training_key(training_seed(experiment), step)

    log = RunLog(run.folder)
    checkpoints = Checkpoints(run.folder / "checkpoints")
    first_evaluated = min(experiment.train.evaluate_every, experiment.train.steps)
    if not has_best(run.folder) and was_evaluated(checkpoints, log, first_evaluated):
        if hosts.is_first():
            warn(f"{run.folder / BEST_FILE} is missing or damaged; training starts again")
        checkpoints.remove(first_evaluated)
    validation = Validation(experiment, model, base, mesh, log)

    def evaluate(state, step):
        measured = validation(state, step)
        adapter = on_each_device(state["parameters"], mesh)
        keep_best(run.folder, type(model), adapter, step, measured["validation_win_rate"])
        return measured

    train(
        state,
        lambda state, batch: step_function(state, base, *batch),
        batch_at,
        mesh=mesh,
        steps=experiment.train.steps,
        checkpoints=checkpoints,
        log=log,
        save_every=experiment.train.checkpoint_every,
        description="train_policy",
        evaluate=evaluate,
        evaluate_every=experiment.train.evaluate_every,
        samples_per_step=experiment.train.batch_size,
        unit=experiment.objective.rows,
    )
