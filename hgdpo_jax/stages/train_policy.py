"""Trains the LoRA on the pairs: Diffusion-DPO with statistic matching (HG-DPO, Sec. 3.2), or SFT on the winners."""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from hgdpo_jax import hosts
from hgdpo_jax.adapters import lora
from hgdpo_jax.artifacts import StageRun, fingerprint_of
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.data.pair_loader import PairLoader
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.data.unusable import Unusable, image_of
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.color_shift import HSVMeans, hsv_means, shift_between
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.models.remat import REMAT
from hgdpo_jax.pages.pictures import ImagePair, pair_grid
from hgdpo_jax.pipelines.preference_step import pair_losses
from hgdpo_jax.pipelines.winner_step import winner_losses
from hgdpo_jax.random_keys import image_noise, training_key
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.scorers.scorer import Scorer
from hgdpo_jax.settings import decisive
from hgdpo_jax.sharding import on_each_device, shard_parameters, training_mesh
from hgdpo_jax.stages.generate_pool import base_fingerprints, load_base, sampling_settings
from hgdpo_jax.stages.score_pool import load_scorer, scorer_source
from hgdpo_jax.training.accumulation import accumulation_steps
from hgdpo_jax.training.loop import train
from hgdpo_jax.training.optimizer import make_optimizer
from hgdpo_jax.training.policy_step import make_policy_step
from hgdpo_jax.weights import lora_files
from hgdpo_jax.weights.tensor_files import load_tensors

INPUTS = ("select_pairs",)
EVERY_HOST = True
LOSSES = ("dpo", "sft")
_GRID_IMAGES = 12
BEST_FILE = "best.safetensors"


def settings(experiment: Experiment) -> dict:
    weights = base_fingerprints(experiment) | {"weights.scorer": scorer_source(experiment).fingerprint()}
    return {
        "seed": experiment.seed,
        "dtype": experiment.dtype,
        "weights": {name.removeprefix("weights."): value for name, value in weights.items()},
        "adapter.rank": experiment.adapter.rank,
        "adapter.scale": experiment.adapter.scale,
        "loss": decisive(experiment.loss),
        "train": decisive(experiment.train),
        "prompts.validation": fingerprint_of({"texts": _validation_prompts(experiment)}),
        **sampling_settings(experiment),
    }


def _validation_prompts(experiment: Experiment) -> list[str]:
    return load_prompts(experiment.prompts.validation, experiment.prompts.validation_count)


def training_seed(experiment: Experiment) -> int:
    """The seed of what training draws."""
    return experiment.seed + experiment.train.seed


def plan(experiment: Experiment, run: StageRun) -> str:
    prompts = len(load_prompts(experiment.prompts.train, experiment.prompts.train_count))
    steps, batch_size = experiment.train.steps, experiment.train.batch_size
    return (
        f"{steps:,} steps of {batch_size} pairs, of at most {prompts:,}: each {steps * batch_size / prompts:.3g} times"
    )


def check(experiment: Experiment) -> None:
    """Raises UserError where the loss is unknown, or a setting of the training cannot be."""
    if experiment.loss.kind not in LOSSES:
        raise UserError(f"loss.kind is {experiment.loss.kind!r}, expected {' or '.join(map(repr, LOSSES))}")
    check_training(experiment.train, "train")


def check_training(options, name: str) -> None:
    """Raises UserError where one of the training settings called `name` cannot be."""
    if options.remat not in REMAT:
        raise UserError(f"{name}.remat is {options.remat!r}, expected {' or '.join(map(repr, REMAT))}")
    if options.adam_bits not in (8, 32):
        raise UserError(f"{name}.adam_bits is {options.adam_bits}, expected 8 or 32")
    if options.batch_size % jax.device_count():
        raise UserError(
            f"{name}.batch_size is {options.batch_size}, expected a multiple of the {jax.device_count()} devices"
        )
    if options.fsdp < 0 or (options.fsdp and jax.local_device_count() % options.fsdp):
        raise UserError(
            f"{name}.fsdp is {options.fsdp}, expected 0 or a divisor of the {jax.local_device_count()} local devices"
        )


def make_losses(experiment: Experiment, model: StableDiffusion) -> Callable[..., dict[str, jax.Array]]:
    """The function `(lora, base, batch)` that `loss.kind` names; its values, one a pair, have "loss" among them."""
    # The pool's images were drawn from these states, and later ones will be: the LoRA must learn from no others.
    clip_skip = experiment.pool.clip_skip
    # Weights are an argument of the loss: to hold them here would keep a copy beside the one that training divides.
    model = model.with_remat(experiment.train.remat).with_parameters(unet={}, text_encoder={})
    if experiment.loss.kind == "sft":
        return functools.partial(winner_losses, model, clip_skip=clip_skip)
    return functools.partial(
        pair_losses,
        model,
        beta=experiment.loss.beta,
        statistic_weight=experiment.loss.statistic_weight,
        statistic_stride=experiment.loss.statistic_stride,
        clip_skip=clip_skip,
    )


def make_training(experiment: Experiment, model: StableDiffusion, mesh: Mesh):
    """What makes the state that training begins with, and its step (`make_policy_step`) on a mesh."""
    optimizer = make_optimizer(
        learning_rate=experiment.train.learning_rate,
        warmup_steps=experiment.train.warmup_steps,
        weight_decay=experiment.train.weight_decay,
        max_gradient_norm=experiment.train.max_gradient_norm,
        adam_bits=experiment.train.adam_bits,
    )

    def initial_state():
        targets = lora.find_targets(model.parameters["unet"])
        parameters = lora.initialize(jax.random.key(training_seed(experiment)), targets, experiment.adapter.rank)
        return {"parameters": parameters, "optimizer": optimizer.init(parameters)}

    parts = accumulation_steps(experiment.train.batch_size, experiment.train.device_batch, mesh.size)
    return initial_state, make_policy_step(
        make_losses(experiment, model), optimizer, len(model.schedule.betas), parts, mesh
    )


def run(experiment: Experiment, run: StageRun) -> None:
    model = load_base(experiment)
    pairs = PairLoader(run.local_input("select_pairs"), experiment.train.batch_size, training_seed(experiment))
    mesh = training_mesh(experiment.train.fsdp)
    initial_state, step_function = make_training(experiment, model, mesh)
    state = initial_state()
    del initial_state
    base = shard_parameters({name: model.parameters[name] for name in ("unet", "text_encoder")}, mesh)
    # Where devices share the base, none keeps a copy of its own but while it draws.
    model = model.with_parameters(unet={}, text_encoder={})

    def batch_at(step):
        batch = pairs.batch(step)
        arrays = {
            "winner_latents": batch["winner_latents"],
            "loser_latents": batch["loser_latents"],
            "token_ids": model.tokenize(batch["prompts"]),
        }
        return arrays, training_key(training_seed(experiment), step)

    log = RunLog(run.folder)
    checkpoints = Checkpoints(run.folder / "checkpoints")
    best = Best(run.folder)
    first_evaluated = min(experiment.train.evaluate_every, experiment.train.steps)
    if not best.is_there() and was_evaluated(checkpoints, log, first_evaluated):
        if hosts.is_first():
            print(f"warning: {best.path} is missing or damaged; training starts anew", file=sys.stderr, flush=True)
        checkpoints.remove(first_evaluated)
    validation = Validation(experiment, model, base, mesh, log)

    def evaluate(state, step):
        measured = validation(state, step)
        best.offer(on_each_device(state["parameters"], mesh), step, measured["validation_win_rate"])
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
        unit="pair",
    )


def was_evaluated(checkpoints: Checkpoints, log: RunLog, first: int) -> bool:
    """Whether `first`, the first step that is evaluated, has its evaluation: its checkpoint is saved before that."""
    return any(step > first or (step == first and log.count(step) > 1) for step in checkpoints.steps())


class Best:
    """The LoRA of the evaluated step with the highest validation win rate, the later of two equal ones, in a file."""

    def __init__(self, folder: epath.Path):
        self.path = folder / BEST_FILE
        self.win_rate = -math.inf

    def is_there(self) -> bool:
        """Whether an earlier run left one, and its file is whole; the first process's answer on all."""
        with contextlib.suppress(UserError):
            self.win_rate = float(load_tensors(self.path)[1]["validation_win_rate"])
        # What follows from it all do together.
        return hosts.from_first(self.win_rate > -math.inf)

    def offer(self, parameters, step: int, win_rate: float) -> None:
        """Keeps the LoRA of a step if it is as good as the one kept."""
        if win_rate >= self.win_rate and hosts.is_first():
            self.win_rate = win_rate
            metadata = {"step": str(step), "validation_win_rate": repr(win_rate)}
            lora_files.save_adapter(jax.device_get(parameters), self.path, metadata=metadata)


class Validation:
    """Win rate by the training scorer, colour shift and a grid of pictures on the validation prompts.

    `base` has the U-Net and the text encoder as they lie on the mesh.
    """

    def __init__(self, experiment: Experiment, model: StableDiffusion, base: dict, mesh: Mesh, log: RunLog):
        self.config, self.model, self.base_parameters, self.mesh, self.log = experiment, model, base, mesh, log
        self.scorer = load_scorer(experiment)
        if isinstance(self.scorer, Scorer):
            # On the host, from which each call takes it: training has better use for its 2 GB of a device.
            self.scorer = dataclasses.replace(self.scorer, parameters=jax.device_get(self.scorer.parameters))
        self.prompts = _validation_prompts(experiment)
        self.shape = model.latent_shape(experiment.pool.width, experiment.pool.height)
        self.base: tuple[dict[str, np.ndarray], Any] | None = None

    def draw(self, adapter: dict, scale: float) -> dict[str, np.ndarray]:
        """Images and their scores, with the adapter at a scale; scale 0 is the base, in the same compiled program."""
        pool, model = self.config.pool, self.model.with_parameters(**on_each_device(self.base_parameters, self.mesh))

        def draw_own(rows):
            prompts = [self.prompts[row] for row in rows]
            noise = image_noise(self.config.seed, prompts, np.zeros(len(prompts), np.int32), self.shape)
            latents = model.generate_latents(
                prompts,
                np.asarray(noise),
                [(adapter, jnp.float32(scale))],
                negative_prompts=[pool.negative_prompt] * len(prompts),
                clip_skip=pool.clip_skip,
                steps=pool.steps,
                guidance=pool.guidance,
                device_batch=pool.device_batch,
            )
            images, usable = model.decode_latents_checked(latents, pool.device_batch)
            scores = np.where(usable, self.scorer.score(images, prompts, pool.device_batch), np.nan)
            return {"images": images, "scores": scores}

        drawn = hosts.divide(draw_own, len(self.prompts))
        usable = np.isfinite(drawn["scores"])
        drawn["scores"] = np.where(usable, drawn["scores"], np.nan)
        unusable = Unusable(pool.unusable_limit, len(self.prompts))
        unusable.add(usable, f"the validation scores with the LoRA at {scale:g}", image_of(self.prompts, 0))
        unusable.require_rest(usable.sum())
        if hosts.is_first():
            unusable.warn()
        return drawn

    def __call__(self, state, step: int) -> dict[str, float]:
        """Measures the adapter after `step` steps."""
        adapter = on_each_device(state["parameters"], self.mesh)
        if self.base is None:
            drawn = self.draw(adapter, 0.0)
            self.base = drawn, _colors(drawn)
        (base, base_means), tuned = self.base, self.draw(adapter, self.config.adapter.scale)
        shift = shift_between(base_means, _colors(tuned))
        pairs = [
            ImagePair(
                prompt,
                base["images"][i],
                tuned["images"][i],
                {"score": float(base["scores"][i])},
                {"score": float(tuned["scores"][i])},
            )
            for i, prompt in enumerate(self.prompts[:_GRID_IMAGES])
        ]
        self.log.image(step, "validation", pair_grid(pairs, "base", "tuned", "score"))
        return {
            "validation_win_rate": win_rate(tuned["scores"][:, None], base["scores"][:, None]).rate,
            "validation_hue_shift": shift.signed_hue,
            "validation_saturation_shift": shift.signed_saturation,
            "validation_value_shift": shift.signed_value,
        }


def _colors(drawn: dict[str, np.ndarray]) -> HSVMeans:
    return hsv_means(drawn["images"][np.isfinite(drawn["scores"])])


def best_adapter(folder: epath.Path) -> tuple[dict, int]:
    """The LoRA of the step with the highest validation win rate, and that step."""
    return lora_files.load_adapter(folder / BEST_FILE), int(load_tensors(folder / BEST_FILE)[1]["step"])
