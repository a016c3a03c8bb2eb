"""The training step of all weights of a denoiser on encoded images."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hgdpo_jax import losses
from hgdpo_jax.diffusion.schedule import add_noise, training_target
from hgdpo_jax.families.model import Model
from hgdpo_jax.training.accumulation import accumulating_step


def finetune_step(model: Model, optimizer, parts: int, mesh: Mesh):
    """The `accumulating_step` on batches of the rows of `EncodedImages`; `frozen` is None."""

    def loss(denoiser, _, batch):
        drawn = batch["latents"], batch["noise"], batch["timesteps"]
        noisy = add_noise(model.schedule, *drawn)
        # The weights stay float32: each layer casts them to the model's type.
        predicted = model.prediction({"denoiser": denoiser}, noisy, batch["timesteps"], batch["conditioning"])
        return {"loss": losses.noise_prediction(predicted, training_target(model.schedule, *drawn))}

    def draw(batch, key):
        latent_key, noise_key, time_key = jax.random.split(key, 3)
        mean, deviation = jnp.split(batch["moments"].astype(jnp.float32), 2, axis=-1)
        return {
            "latents": mean + deviation * jax.random.normal(latent_key, mean.shape),
            "noise": jax.random.normal(noise_key, mean.shape),
            "timesteps": jax.random.randint(time_key, mean.shape[:1], 0, len(model.schedule.betas)),
            "conditioning": batch["conditioning"],
        }

    return accumulating_step(loss, optimizer, draw, parts, mesh)
