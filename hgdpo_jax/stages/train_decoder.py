"""Trains the decoder of a toon checkpoint further; the encoder, and so the latents, stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.stages.train_autoencoder import parameter_shapes, reconstruction_loss, to_float
from hgdpo_jax.toon.portraits import portrait, render_many
from hgdpo_jax.training.loop import train
from hgdpo_jax.training.optimizer import make_optimizer
from hgdpo_jax.training.state import initial_state, make_step
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.conversion import from_tree, to_tree

INPUTS = ("train_autoencoder",)
_ENCODER = ("encoder", "quant_conv")


def settings(config) -> dict:
    return {"seed": config.seed, **config.decoder.to_dict()}


def plan(config) -> str:
    return f"{config.decoder.steps} steps of {config.decoder.batch_size} portraits"


def run(config, run: StageRun) -> None:
    options, source = config.decoder, run.input("train_autoencoder") / "vae"
    vae_config = folders.read_json(source / "config.json")
    model = Autoencoder(AutoencoderConfig.from_dict(vae_config))
    tensors = folders.read_weights(source, "diffusion_pytorch_model")
    parameters = to_tree(tensors, parameter_shapes(model), where=str(source))
    images = render_many([portrait(options.first_portrait + index, "train") for index in range(options.images)])
    encode = jax.jit(lambda pixels: model.apply({"params": parameters}, to_float(pixels), method="encode")[0])
    latents = np.concatenate([encode(images[start : start + 100]) for start in range(0, len(images), 100)])

    def loss_function(decoder, _, batch):
        pixels, latents = batch
        output = model.apply({"params": decoder}, latents, method="decode")
        return reconstruction_loss(to_float(pixels), output).mean(), {}

    def batch_at(step):
        rows = np.random.default_rng((config.seed, step)).integers(len(images), size=options.batch_size)
        return images[rows], latents[rows]

    optimizer = make_optimizer(
        learning_rate=options.learning_rate, warmup_steps=50, decay_steps=options.steps, max_gradient_norm=1.0
    )
    decoder = {name: jax.tree.map(jnp.asarray, tree) for name, tree in parameters.items() if name not in _ENCODER}
    state = train(
        initial_state(decoder, optimizer),
        make_step(loss_function, optimizer, average_decay=0.995),
        batch_at,
        steps=options.steps,
        checkpoints=Checkpoints(run.folder / "checkpoints"),
        log=RunLog(run.folder),
        save_every=options.save_every,
        description="train_decoder",
    )
    trained = {name: parameters[name] for name in _ENCODER} | jax.device_get(state["average"])
    folders.write_json(run.folder / "vae" / "config.json", vae_config)
    folders.write_weights(run.folder / "vae" / "diffusion_pytorch_model.safetensors", from_tree(trained), "float32")
