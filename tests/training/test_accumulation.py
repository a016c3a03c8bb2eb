import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hgdpo_jax.sharding import data_mesh, replicate, shard_batch
from hgdpo_jax.training.accumulation import accumulation_steps, make_accumulating_step

ROWS = 12


def losses(parameters, frozen, batch):
    error = jnp.tanh(batch["x"] @ parameters["matrix"] + frozen) - batch["noise"]
    return {"loss": jnp.square(error), "error": error}


def draw(batch, key):
    return batch | {"noise": jax.random.normal(key, (len(batch["x"]), 2))}


def step_in(parts, batch):
    """State and scalars after one step of plain descent, whose change is the gradient."""
    mesh, optimizer = data_mesh(), optax.sgd(1.0)
    parameters = {"matrix": jnp.linspace(-1, 1, 6).reshape(3, 2)}
    state = replicate({"parameters": parameters, "optimizer": optimizer.init(parameters)}, mesh)
    step = make_accumulating_step(losses, optimizer, draw, parts, mesh)
    return jax.device_get(step(state, jnp.float32(0.1), shard_batch(batch, mesh), jax.random.key(3)))


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_gradient_of_the_parts_is_that_of_the_whole_batch(parts):
    batch = {"x": np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)}
    (whole, whole_scalars), (cut, scalars) = step_in(1, batch), step_in(parts, batch)
    assert scalars.keys() == {"loss", "error", "gradient_norm"}
    for name, value in whole_scalars.items():
        np.testing.assert_allclose(scalars[name], value, rtol=1e-5)
    np.testing.assert_allclose(cut["parameters"]["matrix"], whole["parameters"]["matrix"], rtol=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "device_batch", "devices", "parts"),
    [(16, 4, 4, 1), (16, 4, 1, 4), (16, 3, 1, 8), (16, 1, 2, 8), (32, 100, 1, 1), (6, 4, 1, 2)],
)
def test_batch_is_cut_into_the_fewest_equal_parts_that_fit(batch_size, device_batch, devices, parts):
    assert accumulation_steps(batch_size, device_batch, devices) == parts
