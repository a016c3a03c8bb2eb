"""Trains the U-Net of a toon checkpoint from nothing on captioned portraits, and writes the whole checkpoint.

The autoencoder and the text encoder come from their own stages and stay as they are.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hgdpo_jax import losses
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.diffusion.schedule import add_noise
from hgdpo_jax.families.stable_diffusion import configs
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion, by_file, by_role
from hgdpo_jax.pages.pictures import contact_sheet
from hgdpo_jax.random_keys import image_noise, training_key
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.settings import decisive
from hgdpo_jax.toon.captions import prompts, wordings
from hgdpo_jax.toon.fit import fit
from hgdpo_jax.toon.portraits import portrait, render_many
from hgdpo_jax.toon.settings import UNetTraining, section
from hgdpo_jax.weights import clip_files, folders
from hgdpo_jax.weights.clip_tokenizer import load_tokenizer
from hgdpo_jax.weights.conversion import from_tree, to_tree

INPUTS = ("train_autoencoder", "train_clip")

SCHEDULER = configs.SCHEDULER | {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    # diffusers warns about any other; linspace spacing does not read it.
    "steps_offset": 1,
}


def settings(experiment: Experiment) -> dict:
    return {"seed": experiment.seed, **decisive(_options(experiment))}


def plan(experiment: Experiment, run: StageRun) -> str:
    options = _options(experiment)
    return f"{options.steps} steps of {options.batch_size} portraits"


def run(experiment: Experiment, run: StageRun) -> None:
    options = _options(experiment)
    model = _untrained(run, options, experiment.seed)
    tokens, latents = _cache(model, options)
    empty = model.tokenize([""])[0]

    def loss_function(unet, frozen, batch):
        clean, token_ids, key = batch
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, clean.shape)
        timesteps = jax.random.randint(time_key, (len(clean),), 0, len(model.schedule.betas))
        noisy = add_noise(model.schedule, clean, noise, timesteps)
        states = model.condition(frozen, token_ids)
        predicted = model.prediction({"denoiser": unet}, noisy, timesteps, states)
        error = losses.noise_prediction(predicted, noise)
        # Divided by it, an error of the noise is one of the velocity: it no longer counts little at high noise.
        weight = jnp.minimum(1.0 / jnp.asarray(model.schedule.alphas_cumprod)[timesteps], options.noisy_weight_limit)
        return (weight * error).mean(), {"noise_prediction": error.mean()}

    def batch_at(step):
        random = np.random.default_rng((experiment.seed, step))
        rows = random.integers(len(latents), size=options.batch_size)
        ids = tokens[random.integers(len(tokens), size=len(rows)), rows]
        # Guidance needs a model that knows the empty prompt.
        ids[random.random(len(rows)) < options.empty_captions] = empty
        return latents[rows], ids, training_key(experiment.seed, step)

    log = RunLog(run.folder)
    sample_prompts = prompts("validation", 24)
    start = np.asarray(image_noise(experiment.seed, sample_prompts, np.zeros(24, np.int32), latents.shape[1:]))

    def evaluate(state, step):
        """Keeps the weights of this step: earlier ones teach the scorers what a weaker model draws."""
        unet = jax.device_get(state["average"])
        folders.write_weights(run.folder / f"unet-{step}.safetensors", from_tree(unet), "float16")
        trained = model.with_denoiser(unet)
        drawn = trained.generate(sample_prompts, 0, initial_latents=start, steps=12, guidance=3.0, device_batch=24)
        log.image(step, "samples", contact_sheet(drawn, columns=8, enlarge=3))
        return {}

    unet = fit(
        loss_function,
        model.parameters["denoiser"],
        batch_at,
        run,
        options,
        warmup_steps=options.steps // 20,
        average_decay=options.average_decay,
        frozen={"text": model.parameters["text"]},
        log=log,
        evaluate=evaluate,
        evaluate_every=options.keep_every,
        samples_per_step=options.batch_size,
        unit="image",
    )
    model.with_denoiser(unet).save(run.folder / "base")


def _untrained(run: StageRun, options: UNetTraining, seed: int) -> StableDiffusion:
    """The checkpoint before its U-Net is trained."""
    vae, clip = run.input("train_autoencoder") / "vae", clip_files.read_folder(run.input("train_clip") / "clip")
    text_config = dict(clip.config["text_config"])
    model = StableDiffusion.of_configs(
        {
            "vae": folders.read_json(vae / "config.json"),
            "text_encoder": text_config,
            "unet": {**options.unet, "cross_attention_dim": text_config["hidden_size"]},
            "scheduler": SCHEDULER,
        }
    )
    shapes = by_file(model.parameters)
    tensors = folders.read_weights(vae, "diffusion_pytorch_model")
    text_tensors = {
        name.removeprefix("text_model."): array
        for name, array in clip.tensors.items()
        if name.startswith("text_model.")
    }
    latents = jnp.zeros((1, 8, 8, model.latent_channels))
    states = jnp.zeros((1, 2, text_config["hidden_size"]))
    initial = jax.jit(model.unet.init)(jax.random.key(seed), latents, jnp.zeros((1,), jnp.int32), states)
    parameters = by_role(
        unet=initial["params"],
        vae=to_tree(tensors, shapes["vae"], where=str(vae)),
        text_encoder=to_tree(text_tensors, shapes["text_encoder"], where="train_clip"),
    )
    tokenizer = load_tokenizer(run.input("train_clip") / "clip")
    return dataclasses.replace(model, parameters=parameters, tokenizer=tokenizer)


def _cache(model: StableDiffusion, options: UNetTraining) -> tuple[np.ndarray, np.ndarray]:
    """Token ids `[captions, n, 77]` and latents `[n, h, w, 4]` of the training portraits."""
    people = [portrait(index, "train") for index in range(options.portraits)]
    tokens = model.tokenize(wordings(people, options.captions_per_portrait)).reshape(
        options.captions_per_portrait, len(people), -1
    )
    return tokens, model.encode_images(render_many(people), device_batch=64)


def _options(experiment: Experiment) -> UNetTraining:
    return section(experiment.extra, "base_training")
