import jax
import jax.numpy as jnp
import numpy as np
import optax

from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.training.policy_step import make_policy_step


def test_a_step_rounds_to_bfloat16_wherever_its_program_says():
    def losses(lora, base, batch):
        values = batch["winner_latents"].astype(jnp.bfloat16)
        # As XLA would have it, the square is float32's.
        rounded = (values * values).astype(jnp.float32)
        return {"loss": lora["scale"] * rounded.mean(axis=1)}

    # The square of 1 + 2^-7 lies between two numbers of bfloat16.
    batch = {"winner_latents": np.full((8, 4), 1 + 2**-7, np.float32)}
    state = {"parameters": {"scale": jnp.float32(1)}, "optimizer": optax.sgd(0.0).init(None)}
    step = make_policy_step(losses, lambda batch, key: batch, optax.sgd(0.0), 1, data_mesh(jax.devices()[:1]))
    _, scalars = step(state, {}, batch, jax.random.key(0))
    assert scalars["loss"] == 1 + 2**-6
