"""Fine-tunes all weights of the base's denoiser on captioned images by noise prediction (HG-DPO, Sec. 2).

Writes a complete checkpoint in float16, with the VAE and the text encoder of the base.
"""

import jax
import numpy as np
from jaxtyping import Bool

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.batching import chosen, repeated
from hgdpo_jax.checkpoints import Checkpoints, saved_steps
from hgdpo_jax.data.batches import ShuffledBatches
from hgdpo_jax.data.encoded_images import half, read_encoded
from hgdpo_jax.data.unusable import Unusable, image_of
from hgdpo_jax.experiment.drawing import drawing_of, images_of_all_hosts
from hgdpo_jax.experiment.models import base_fingerprints, check_base, load_base
from hgdpo_jax.experiment.training import check_training, make_finetuning
from hgdpo_jax.pages.pictures import contact_sheet
from hgdpo_jax.random_keys import training_key
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.settings import decisive
from hgdpo_jax.sharding import on_each_device, shard_parameters, training_mesh
from hgdpo_jax.training.loop import train
from hgdpo_jax.weights.model_card import read_license, write_card

INPUTS = ("encode_images",)
NEEDS = ("weights.base",)
EVERY_HOST = True


def settings(experiment: Experiment) -> dict:
    return {
        "seed": experiment.seed,
        "dtype": experiment.dtype,
        "attention": experiment.attention,
        **base_fingerprints(experiment),
        "finetune": decisive(experiment.finetune),
    }


def plan(experiment: Experiment, run: StageRun) -> str:
    return f"{experiment.finetune.steps:,} steps of {experiment.finetune.batch_size} images"


def check(experiment: Experiment) -> None:
    """Raises UserError if a setting of the training is invalid, or the base cannot draw its images."""
    check_training(experiment.finetune, "finetune")
    check_base(experiment)


def left(experiment: Experiment, run: StageRun) -> float:
    """The share of the steps that no checkpoint holds yet, by the names of checkpoints."""
    return 1 - max(saved_steps(run.folder / "checkpoints"), default=0) / experiment.finetune.steps


def drop_captions(seed: int, step: int, batch_size: int, share: float) -> Bool[np.ndarray, " batch_size"]:
    """Which captions of a step's batch the empty prompt replaces, each with probability `share`."""
    return np.random.default_rng((seed, step)).random(batch_size) < share


def run(experiment: Experiment, run: StageRun) -> None:
    options = experiment.finetune
    images, captions = read_encoded(run.local_input("encode_images"))
    # In bfloat16 an update at this learning rate would round to zero.
    model = load_base(experiment, "float32").computing_in(experiment.dtype)
    mesh = training_mesh(options.fsdp)
    initial_state, step_function = make_finetuning(experiment, model, mesh)
    batches = ShuffledBatches(images, options.batch_size, experiment.seed)
    # From all layers of the text encoder, like the empty prompt of guidance.
    empty = half(model.encode_prompts([""]))

    def batch_at(step):
        batch = batches[step]
        dropped = drop_captions(experiment.seed, step, options.batch_size, options.empty_captions)
        own = dropped[np.asarray(hosts.own_rows(options.batch_size))]
        conditioning = chosen(own, repeated(empty, len(own)), batch["conditioning"])
        return {"moments": batch["moments"], "conditioning": conditioning}, training_key(experiment.seed, step)

    log = RunLog(run.folder)

    def draw_samples(state, step):
        tuned = model.with_parameters(denoiser=on_each_device(state["parameters"], mesh))
        drawing = drawing_of(experiment, tuned)
        images, usable = images_of_all_hosts(drawing, captions, np.zeros(len(captions), np.int32))
        unusable = Unusable(experiment.pool.unusable_limit, len(captions))
        unusable.add({f"the samples at step {step}": usable}, image_of(captions, 0))
        if hosts.is_first():
            unusable.warn()
        log.image(step, "samples", contact_sheet(images, columns=4))
        return {}

    parameters = shard_parameters(model.parameters["denoiser"], mesh)
    # Devices that share the denoiser hold full copies only while they draw.
    model = model.with_parameters(denoiser={})
    state = train(
        jax.jit(initial_state)(parameters),
        lambda state, batch: step_function(state, None, *batch),
        batch_at,
        mesh=mesh,
        steps=options.steps,
        checkpoints=Checkpoints(run.folder / "checkpoints"),
        log=log,
        save_every=options.checkpoint_every,
        description="finetune_base",
        evaluate=draw_samples,
        evaluate_every=options.evaluate_every,
        samples_per_step=options.batch_size,
        unit="image",
    )
    trained = model.with_parameters(denoiser=on_each_device(state["parameters"], mesh))
    if hosts.is_first():
        trained.save(run.folder / "base")
        write_card(run.folder / "base", base=experiment.weights.base, license=read_license(experiment.weights.base))
