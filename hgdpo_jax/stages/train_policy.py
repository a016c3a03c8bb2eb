"""Trains the LoRA on the pairs: Diffusion-DPO with statistic matching (HG-DPO, Sec. 3.2), or SFT on the winners."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hgdpo_jax.adapters import lora
from hgdpo_jax.artifacts import StageRun, fingerprint_of, write_json
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.data.pair_loader import PairLoader
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.color_shift import hsv_means, shift_between
from hgdpo_jax.evaluation.figures import ImagePair, pair_grid
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.pipelines.preference_step import pair_losses
from hgdpo_jax.pipelines.stable_diffusion import StableDiffusion
from hgdpo_jax.pipelines.winner_step import winner_losses
from hgdpo_jax.random_keys import image_noise, training_key
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.stages.generate_pool import base_fingerprints, load_base, sampling_settings
from hgdpo_jax.stages.score_pool import load_scorer, scorer_fingerprints
from hgdpo_jax.training.accumulation import accumulation_steps, make_accumulating_step
from hgdpo_jax.training.loop import train
from hgdpo_jax.training.optimizer import make_optimizer
from hgdpo_jax.weights import folders, lora_files

INPUTS = ("select_pairs",)
LOSSES = ("dpo", "sft")
_GRID_IMAGES = 12


def settings(config) -> dict:
    weights = base_fingerprints(config) | scorer_fingerprints(config)
    return {
        "seed": config.seed,
        "dtype": config.dtype,
        "weights": {name.removeprefix("weights."): value for name, value in weights.items()},
        "adapter.rank": config.adapter.rank,
        "adapter.scale": config.adapter.scale,
        "loss": config.loss.to_dict(),
        # How a batch is cut and how often it is saved may change while it runs.
        "train": {k: v for k, v in config.train.to_dict().items() if k not in ("device_batch", "checkpoint_every")},
        "prompts.validation": fingerprint_of({"texts": _validation_prompts(config)}),
        **sampling_settings(config),
    }


def _validation_prompts(config) -> list[str]:
    return load_prompts(config.prompts.validation, config.prompts.validation_count)


def plan(config, run: StageRun) -> str:
    return f"{config.train.steps} steps of {config.train.batch_size} pairs"


def check(config) -> None:
    """Raises UserError where the loss is unknown, or a number of the training cannot be."""
    if config.loss.kind not in LOSSES:
        raise UserError(f"loss.kind is {config.loss.kind!r}, expected {' or '.join(map(repr, LOSSES))}")
    if config.adapter.rank < 1:
        raise UserError(f"adapter.rank is {config.adapter.rank}, expected at least 1")
    check_training(config.train, "train")


def check_training(options, name: str) -> None:
    """Raises UserError where a number of the training settings called `name` cannot be."""
    if options.adam_bits not in (8, 32):
        raise UserError(f"{name}.adam_bits is {options.adam_bits}, expected 8 or 32")
    for field in ("steps", "batch_size", "device_batch", "evaluate_every", "checkpoint_every"):
        if options[field] < 1:
            raise UserError(f"{name}.{field} is {options[field]}, expected at least 1")
    devices = jax.local_device_count()
    if options.batch_size % devices:
        raise UserError(
            f"{name}.batch_size is {options.batch_size}, expected a multiple of the {devices} local devices"
        )


def make_losses(config, model: StableDiffusion) -> Callable[..., dict[str, jax.Array]]:
    """The function `(lora, base, batch)` that `loss.kind` names; its values, one a pair, have "loss" among them."""
    # The pool's images were drawn from these states, and later ones will be: the LoRA must learn from no others.
    clip_skip = config.pool.clip_skip
    if config.loss.kind == "sft":
        return functools.partial(winner_losses, model, clip_skip=clip_skip)
    return functools.partial(
        pair_losses,
        model,
        beta=config.loss.beta,
        statistic_weight=config.loss.statistic_weight,
        statistic_stride=config.loss.statistic_stride,
        clip_skip=clip_skip,
    )


def make_policy_step(losses: Callable[..., dict[str, jax.Array]], optimizer, timesteps: int, parts: int):
    """One compiled step `(state, base, batch, key) -> (state, scalars)`; gradients of `parts` slices are averaged."""

    def loss_function(parameters, base, batch):
        values = losses(parameters, base, batch)
        means = {name: value.mean() for name, value in values.items()}
        return means["loss"], means

    def draw(batch, key):
        noise_key, time_key = jax.random.split(key)
        shape = batch["winner_latents"].shape
        return batch | {
            "noise": jax.random.normal(noise_key, shape),
            "timesteps": jax.random.randint(time_key, shape[:1], 0, timesteps),
        }

    return make_accumulating_step(loss_function, optimizer, draw, parts)


def make_training(config, model: StableDiffusion, devices: int):
    """What makes the state that training begins with, and its step (`make_policy_step`) on so many devices."""
    optimizer = make_optimizer(
        learning_rate=config.train.learning_rate,
        warmup_steps=config.train.warmup_steps,
        weight_decay=config.train.weight_decay,
        max_gradient_norm=config.train.max_gradient_norm,
        adam_bits=config.train.adam_bits,
    )

    def initial_state():
        targets = lora.find_targets(model.parameters["unet"])
        parameters = lora.initialize(jax.random.key(config.seed), targets, config.adapter.rank)
        return {"parameters": parameters, "optimizer": optimizer.init(parameters)}

    parts = accumulation_steps(config.train.batch_size, config.train.device_batch, devices)
    return initial_state, make_policy_step(make_losses(config, model), optimizer, len(model.schedule.betas), parts)


def run(config, run: StageRun) -> None:
    model = load_base(config)
    pairs = PairLoader(run.input("select_pairs"), config.train.batch_size, config.seed)
    initial_state, step_function = make_training(config, model, data_mesh().size)
    base = {name: model.parameters[name] for name in ("unet", "text_encoder")}

    def batch_at(step):
        batch = pairs.batch(step)
        arrays = {
            "winner_latents": batch["winner_latents"],
            "loser_latents": batch["loser_latents"],
            "token_ids": model.tokenize(batch["prompts"]),
        }
        return arrays, training_key(config.seed, step)

    log = RunLog(run.folder)
    checkpoints = Checkpoints(run.folder / "checkpoints", best="validation_win_rate")
    state = train(
        initial_state(),
        lambda state, batch: step_function(state, base, *batch),
        batch_at,
        steps=config.train.steps,
        checkpoints=checkpoints,
        log=log,
        save_every=config.train.checkpoint_every,
        description="train_policy",
        evaluate=Validation(config, model, log),
        evaluate_every=config.train.evaluate_every,
        samples_per_step=config.train.batch_size,
        unit="pair",
    )
    best = checkpoints.best_step() or config.train.steps
    adapter = jax.device_get(checkpoints.restore(best, state)["parameters"])
    checkpoints.close()
    lora_files.save_adapter(adapter, run.folder / "best.safetensors")
    write_json(run.folder / "best.json", {"step": best})


class Validation:
    """Win rate by the training scorer, colour shift and a grid of pictures on the validation prompts."""

    def __init__(self, config, model: StableDiffusion, log: RunLog):
        self.model, self.log, self.scale = model, log, config.adapter.scale
        self.scorer = load_scorer(config)
        self.device_batch = config.pool.device_batch
        self.prompts = _validation_prompts(config)
        self.sampling = {
            "negative_prompts": [config.pool.negative_prompt] * len(self.prompts),
            "clip_skip": config.pool.clip_skip,
            "steps": config.pool.steps,
            "guidance": config.pool.guidance,
        }
        shape = model.latent_shape(config.pool.width, config.pool.height)
        self.start = np.asarray(image_noise(config.seed, self.prompts, np.zeros(len(self.prompts), np.int32), shape))
        self.base: tuple | None = None

    def draw(self, adapter: dict, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Images and their scores, with the adapter at a scale; scale 0 is the base, in the same compiled program."""
        latents = self.model.generate_latents(
            self.prompts,
            self.start,
            [(adapter, jnp.float32(scale))],
            device_batch=self.device_batch,
            **self.sampling,
        )
        images = self.model.decode_latents(latents, self.device_batch)
        return images, self.scorer.score(images, self.prompts, self.device_batch)

    def __call__(self, state, step: int) -> dict[str, float]:
        """Measures the adapter after `step` steps."""
        adapter = state["parameters"]
        if self.base is None:
            images, scores = self.draw(adapter, 0.0)
            self.base = images, scores, hsv_means(images)
        base_images, base_scores, base_means = self.base
        images, scores = self.draw(adapter, self.scale)
        shift = shift_between(base_means, hsv_means(images))
        pairs = [
            ImagePair(prompt, base_images[i], images[i], {"score": float(base_scores[i])}, {"score": float(scores[i])})
            for i, prompt in enumerate(self.prompts[:_GRID_IMAGES])
        ]
        self.log.image(step, "validation", pair_grid(pairs, "base", "tuned", "score"))
        return {
            "validation_win_rate": win_rate(scores[:, None], base_scores[:, None]).rate,
            "validation_hue_shift": shift.signed_hue,
            "validation_saturation_shift": shift.signed_saturation,
            "validation_value_shift": shift.signed_value,
        }


def best_adapter(folder) -> tuple[dict, int]:
    """The LoRA of the step with the highest validation win rate, and that step."""
    adapter = lora_files.load_adapter(folder / "best.safetensors")
    return adapter, int(folders.read_json(folder / "best.json")["step"])
