"""How much an experiment computes and stores, as its settings alone say."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hgdpo_jax.adapters import lora
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.image_folder import ImageFolder
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.pair_check import MOST_PAIRS
from hgdpo_jax.experiment.evaluating import models_of
from hgdpo_jax.experiment.prompts import number_of_prompts, sampled_count
from hgdpo_jax.experiment.training import optimizer_of
from hgdpo_jax.families.model import Model

# Rows (images, pairs) that a stage, or a part of one, passes through a program: by the names of both.
Work = Mapping[tuple[str, str], int]
# The programs whose rows are pairs or images to learn from, with the sections of their settings.
TRAINING = {"train_policy": "train", "finetune_base": "finetune"}

# Two checkpoints are kept while a third is written.
_CHECKPOINTS = 3
_POOL_STAGES = {"generate_pool", "score_pool", "select_pairs", "check_pairs"}


def work(experiment: Experiment, stages: Sequence[str] = ()) -> Work:
    """The rows of the programs of each of these stages, or of the experiment's.

    Drawing with latent normalisation counts twice. Nothing is counted where the number of prompts is unknown.
    """
    stages = stages or experiment.stages
    train, finetune, rows = experiment.train, experiment.finetune, dict[tuple[str, str], int]()
    if _POOL_STAGES & set(stages):
        prompts = number_of_prompts(experiment, "train")
        rows["generate_pool", "generate_pool"] = rows["score_pool", "score_pool"] = prompts * experiment.pool.size
        if experiment.pairs.latents == "encoded":
            rows["select_pairs", "select_pairs"] = 2 * prompts
        rows["check_pairs", "score_pool"] = 2 * min(prompts, MOST_PAIRS)
    if "train_policy" in stages:
        rows["train_policy", "train_policy"] = train.steps * train.batch_size
        # The base is drawn once, the tuned model at each evaluation.
        images = number_of_prompts(experiment, "validation") * (1 + -(-train.steps // train.evaluate_every))
        validation = "train_policy: validation"
        rows[validation, "generate_pool"] = rows[validation, "score_pool"] = images
    if "sample_images" in stages:
        images = sampled_count(experiment) * experiment.sample.seeds
        rows["sample_images", "evaluate_policy"] = images * (2 + experiment.sample.latent_normalization)
    if "evaluate_policy" in stages:
        images, models = number_of_prompts(experiment, "test") * experiment.evaluate.seeds, models_of(experiment)
        drawn = sum(1 + model.latent_normalization for model in models if not model.folder)
        rows["evaluate_policy", "evaluate_policy"] = images * drawn
        rows["evaluate_policy", "score_pool"] = images * len(models)
    if "sweep_scale" in stages:
        images = min(number_of_prompts(experiment, "test"), experiment.sweep.prompts) * experiment.evaluate.seeds
        scales = len(experiment.sweep.scales)
        rows["sweep_scale", "evaluate_policy"] = images * (1 + scales * (1 + experiment.sample.latent_normalization))
        rows["sweep_scale", "score_pool"] = images * (1 + scales)
    if {"encode_images", "finetune_base"} & set(stages):
        trained = finetune.steps * finetune.batch_size
        rows["encode_images", "encode_images"] = rows["finetune_base", "finetune_base"] = trained
        if finetune.images:
            # A preflight may run where the images are not.
            with contextlib.suppress(UserError):
                folder = ImageFolder.open(finetune.images, finetune.caption_column)
                rows["encode_images", "encode_images"] = len(folder.captions)
    return {(part, program): n for (part, program), n in rows.items() if part.partition(":")[0] in stages}


def stored_bytes(experiment: Experiment, base: Model, stages: Sequence[str] = ()) -> dict[str, int]:
    """Bytes that these stages, or the experiment's, keep, by their names, without pages and evaluations' pictures.

    The base's parameters may be shapes.
    """
    stages = stages or experiment.stages
    pool, rows = experiment.pool, work(experiment, stages)
    latents = 2 * math.prod(base.latent_shape(pool.width, pool.height))
    stored = {stage: 0 for stage, _ in rows if ":" not in stage}
    for (stage, program), images in rows.items():
        if stage == "generate_pool":
            stored[stage] = images * latents
        elif stage == "score_pool":
            stored[stage] = 4 * images
        elif stage == "encode_images":
            conditioning = sum(leaf.size for leaf in jax.tree.leaves(base.conditioning_shapes(1)))
            stored[stage] = images * 2 * (latents + conditioning)
        elif stage in ("evaluate_policy", "sweep_scale") and program == "evaluate_policy":
            stored[stage] = images * latents
        elif stage == "sample_images":
            # At most: PNG is smaller than its pixels.
            stored[stage] = images * 3 * pool.width * pool.height
    if "select_pairs" in stages:
        stored["select_pairs"] = 2 * number_of_prompts(experiment, "train") * latents
    if "train_policy" in stages:
        targets, rank = base.lora_targets, experiment.adapter.rank
        adapter = jax.eval_shape(lambda: lora.initialize(jax.random.key(0), targets, rank))
        stored["train_policy"] = _CHECKPOINTS * _state_bytes(adapter, lambda: optimizer_of(experiment.train))
    if "finetune_base" in stages:
        shapes = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float32), base.parameters["denoiser"])
        saved = 2 * sum(leaf.size for leaf in jax.tree.leaves(base.parameters))
        stored["finetune_base"] = saved + _CHECKPOINTS * _state_bytes(shapes, lambda: optimizer_of(experiment.finetune))
    return stored


def _state_bytes(parameters: Any, make_optimizer: Callable[[], optax.GradientTransformation]) -> int:
    # The optimiser's numbers are arrays: made outside, they would start JAX's devices.
    state = jax.eval_shape(lambda given: (given, make_optimizer().init(given)), parameters)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
