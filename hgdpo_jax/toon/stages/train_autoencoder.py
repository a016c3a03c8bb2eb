"""Trains the autoencoder of a toon checkpoint on rendered portraits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.files import write_json
from hgdpo_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from hgdpo_jax.models.parameters import apply
from hgdpo_jax.toon.attribute_classifier import to_float
from hgdpo_jax.toon.fit import fit, initial_parameters
from hgdpo_jax.toon.portraits import HEIGHT, WIDTH, portrait, render_many
from hgdpo_jax.toon.settings import AutoencoderTraining
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.conversion import from_tree

INPUTS = ()
settings, plan = AutoencoderTraining.decisive, AutoencoderTraining.plan


def reconstruction_loss(images, reconstructions):
    """Squared and absolute error of the pixels plus absolute error of their differences, one value per image.

    The square preserves the colour of every region, the differences the outlines that an expression consists of.
    """

    def mean(values):
        return values.mean(axis=(1, 2, 3))

    difference = reconstructions - images
    edges = sum(mean(jnp.abs(jnp.diff(difference, axis=axis))) for axis in (1, 2))
    return 10.0 * mean(jnp.square(difference)) + mean(jnp.abs(difference)) + edges


def run(experiment: Experiment, run: StageRun) -> None:
    options = AutoencoderTraining.of(experiment)
    config = AutoencoderConfig.from_dict(dataclasses.asdict(options) | {"latent_channels": 4, "scaling_factor": 1.0})
    model = Autoencoder(config)
    images = render_many([portrait(index, "train") for index in range(options.images)])
    latent_shape = (HEIGHT // config.factor, WIDTH // config.factor, config.latent_channels)

    def loss_function(parameters, _, batch):
        pixels, key = batch
        noise = jax.random.normal(key, (len(pixels), *latent_shape))
        target = to_float(pixels)
        output, mean, log_variance = apply(model, parameters, target, noise)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).mean()
        reconstruction = reconstruction_loss(target, output).mean()
        loss = reconstruction + options.divergence_weight * divergence
        return loss, {"reconstruction_loss": reconstruction, "divergence": divergence}

    def draw_batch(random, key):
        return images[random.integers(len(images), size=options.batch_size)], key

    parameters = initial_parameters(model, experiment.seed, to_float(images[:1]), jnp.zeros((1, *latent_shape)))
    trained = fit(
        loss_function, parameters, draw_batch, run, options, experiment.seed, warmup_steps=50, average_decay=0.995
    )
    encode = jax.jit(lambda pixels: apply(model, trained, to_float(pixels), method="encode")[0])
    deviation = float(np.std(np.concatenate([encode(images[start : start + 64]) for start in range(0, 1024, 64)])))
    levels = len(config.block_out_channels)
    vae_config = dataclasses.asdict(config) | {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "out_channels": 3,
        "sample_size": HEIGHT,
        "scaling_factor": round(1.0 / deviation, 5),
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    write_json(run.folder / "vae" / "config.json", vae_config)
    folders.write_weights(run.folder / "vae" / "diffusion_pytorch_model.safetensors", from_tree(trained), "float32")
