"""Trains the autoencoder of a toon checkpoint on rendered portraits."""

import jax
import jax.numpy as jnp
import numpy as np

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.files import write_json
from hgdpo_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from hgdpo_jax.random_keys import training_key
from hgdpo_jax.settings import decisive
from hgdpo_jax.toon.fit import fit
from hgdpo_jax.toon.oracle import to_float
from hgdpo_jax.toon.portraits import portrait, render_many
from hgdpo_jax.toon.settings import AutoencoderTraining, section
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.conversion import from_tree

INPUTS = ()


def settings(experiment: Experiment) -> dict:
    return {"seed": experiment.seed, **decisive(_options(experiment))}


def plan(experiment: Experiment, run: StageRun) -> str:
    options = _options(experiment)
    return f"{options.steps} steps of {options.batch_size} portraits"


def reconstruction_loss(images, reconstructions):
    """Squared and absolute error of the pixels and absolute error of their differences, one value an image.

    The square keeps every region's colour right, the differences weigh the outlines that an expression consists of.
    """

    def mean(values):
        return values.mean(axis=(1, 2, 3))

    difference = reconstructions - images
    edges = sum(mean(jnp.abs(jnp.diff(difference, axis=axis))) for axis in (1, 2))
    return 10.0 * mean(jnp.square(difference)) + mean(jnp.abs(difference)) + edges


def run(experiment: Experiment, run: StageRun) -> None:
    options = _options(experiment)
    model_config = AutoencoderConfig(
        block_out_channels=options.block_out_channels,
        layers_per_block=options.layers_per_block,
        latent_channels=4,
        norm_num_groups=options.norm_num_groups,
        scaling_factor=1.0,
    )
    model = Autoencoder(model_config)
    images = render_many([portrait(index, "train") for index in range(options.images)])
    latent_shape = (images.shape[1] // model_config.factor, images.shape[2] // model_config.factor, 4)

    def loss_function(parameters, _, batch):
        pixels, key = batch
        noise = jax.random.normal(key, (pixels.shape[0], *latent_shape))
        target = to_float(pixels)
        output, mean, log_variance = model.apply({"params": parameters}, target, noise)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).mean()
        reconstruction = reconstruction_loss(target, output).mean()
        loss = reconstruction + options.divergence_weight * divergence
        return loss, {"reconstruction_loss": reconstruction, "divergence": divergence}

    def batch_at(step):
        rows = np.random.default_rng((experiment.seed, step)).integers(len(images), size=options.batch_size)
        return images[rows], training_key(experiment.seed, step)

    parameters = jax.jit(model.init)(
        jax.random.key(experiment.seed), to_float(images[:1]), jnp.zeros((1, *latent_shape))
    )["params"]
    trained = fit(
        loss_function,
        parameters,
        batch_at,
        run,
        options,
        warmup_steps=50,
        average_decay=0.995,
    )
    encode = jax.jit(lambda pixels: model.apply({"params": trained}, to_float(pixels), method="encode")[0])
    spread = float(np.std(np.concatenate([encode(images[start : start + 64]) for start in range(0, 1024, 64)])))
    write_json(
        run.folder / "vae" / "config.json",
        {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": list(model_config.block_out_channels),
            "down_block_types": ["DownEncoderBlock2D"] * len(model_config.block_out_channels),
            "in_channels": 3,
            "latent_channels": model_config.latent_channels,
            "layers_per_block": model_config.layers_per_block,
            "norm_num_groups": model_config.norm_num_groups,
            "out_channels": 3,
            "sample_size": images.shape[1],
            "scaling_factor": round(1.0 / spread, 5),
            "up_block_types": ["UpDecoderBlock2D"] * len(model_config.block_out_channels),
        },
    )
    folders.write_weights(run.folder / "vae" / "diffusion_pytorch_model.safetensors", from_tree(trained), "float32")


def _options(experiment: Experiment) -> AutoencoderTraining:
    return section(experiment.extra, "autoencoder")
