"""Trains the U-Net of a toon checkpoint from scratch on captioned portraits, and writes the whole checkpoint.

The autoencoder and the text encoder come from their own stages and are not trained further.
"""

import dataclasses

import jax
import jax.numpy as jnp

from hgdpo_jax import losses
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.diffusion.schedule import add_noise
from hgdpo_jax.families.stable_diffusion import configs
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion, by_role
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.toon.captions import wordings
from hgdpo_jax.toon.fit import fit, initial_parameters
from hgdpo_jax.toon.portraits import portrait, render_many
from hgdpo_jax.toon.samples import sample_sheet
from hgdpo_jax.toon.settings import UNetTraining
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.conversion import from_tree, to_tree

INPUTS = ("train_autoencoder", "train_clip")
settings, plan = UNetTraining.decisive, UNetTraining.plan

SCHEDULER = configs.SCHEDULER | {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    # diffusers warns about any other value; linspace spacing ignores it.
    "steps_offset": 1,
}


def run(experiment: Experiment, run: StageRun) -> None:
    options = UNetTraining.of(experiment)
    model = _untrained(run, options, experiment.seed)
    people = [portrait(index, "train") for index in range(options.portraits)]
    tokens = model.tokenize(wordings(people, options.captions_per_portrait))
    tokens = tokens.reshape(options.captions_per_portrait, len(people), -1)
    latents = model.encode_images(render_many(people), device_batch=64)
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
        # This makes it an error of the velocity: an error of the noise has little weight at high noise.
        weight = jnp.minimum(1.0 / jnp.asarray(model.schedule.alphas_cumprod)[timesteps], options.noisy_weight_limit)
        return (weight * error).mean(), {"noise_prediction": error.mean()}

    def draw_batch(random, key):
        rows = random.integers(len(latents), size=options.batch_size)
        ids = tokens[random.integers(len(tokens), size=len(rows)), rows]
        # Guidance needs a model that was trained with the empty prompt too.
        ids[random.random(len(rows)) < options.empty_captions] = empty
        return latents[rows], ids, key

    log = RunLog(run.folder)

    def evaluate(state, step):
        """Keeps the weights of this step: scorers learn from samples of weaker models."""
        unet = jax.device_get(state["average"])
        folders.write_weights(run.folder / f"unet-{step}.safetensors", from_tree(unet), "float16")
        sheet = sample_sheet(model.with_denoiser(unet), "validation", 24, experiment.seed, enlarge=3)
        log.image(step, "samples", sheet)
        return {}

    unet = fit(
        loss_function,
        model.parameters["denoiser"],
        draw_batch,
        run,
        options,
        experiment.seed,
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
    vae, clip = run.input("train_autoencoder") / "vae", run.input("train_clip") / "clip"
    text_config = folders.read_json(clip / "config.json")["text_config"]
    model = StableDiffusion.of_configs(
        {
            "vae": folders.read_json(vae / "config.json"),
            "text_encoder": text_config,
            "unet": {**options.unet, "cross_attention_dim": text_config["hidden_size"]},
            "scheduler": SCHEDULER,
        }
    )
    latents = jnp.zeros((1, 8, 8, model.latent_channels))
    states = jnp.zeros((1, 2, text_config["hidden_size"]))
    tensors = folders.read_weights(vae, "diffusion_pytorch_model")
    towers = PickScore.load(clip)
    parameters = by_role(
        unet=initial_parameters(model.unet, seed, latents, jnp.zeros((1,), jnp.int32), states),
        vae=to_tree(tensors, model.parameters["autoencoder"], where=str(vae)),
        text_encoder=jax.device_get(towers.parameters["text_model"]),
    )
    return dataclasses.replace(model, parameters=parameters, tokenizer=towers.tokenizer)
