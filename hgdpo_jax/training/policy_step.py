"""The training step of a LoRA on preference pairs."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from hgdpo_jax.training.accumulation import make_accumulating_step

# XLA may leave out roundings to bfloat16. It does so at other places in the policy, whose activations are kept for the
# gradient, than in the reference: while the LoRA is zero their errors would differ, and beta multiplies the difference.
_ROUND_AS_WRITTEN = {"xla_allow_excess_precision": False}


def make_policy_step(losses: Callable[..., dict[str, jax.Array]], optimizer, timesteps: int, parts: int, mesh: Mesh):
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

    return make_accumulating_step(loss_function, optimizer, draw, parts, mesh, _ROUND_AS_WRITTEN)
