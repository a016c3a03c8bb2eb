import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.diffusion.guidance import guidance_scale, guided


def predict_noise(latents, states):
    return latents * states.mean(axis=(1, 2))[:, None, None, None]


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_guided_prediction_lies_on_the_line_from_empty_to_conditional(scale):
    random = np.random.default_rng(0)
    text, empty = random.standard_normal((2, 3, 7, 6)).astype(np.float32)
    latents = random.standard_normal((3, 2, 3, 4)).astype(np.float32)
    result = guided(predict_noise, jnp.asarray(latents), jnp.asarray(text), jnp.asarray(empty), guidance_scale(scale))
    without, conditional = predict_noise(latents, empty), predict_noise(latents, text)
    # Float32 rounding of the difference, scaled up by the guidance.
    np.testing.assert_allclose(result, without + scale * (conditional - without), rtol=1e-5, atol=1e-5)


def test_no_guidance_needs_no_second_prediction():
    batches = []

    def counted(latents, states):
        batches.append(len(latents))
        return predict_noise(latents, states)

    arrays = jnp.ones((3, 2, 3, 4)), jnp.ones((3, 7, 6)), jnp.zeros((3, 7, 6))
    guided(counted, *arrays, guidance_scale(1.0))
    guided(counted, *arrays, guidance_scale(5.0))
    assert batches == [3, 6]


def test_a_batch_divided_over_devices_is_guided_where_it_lies():
    program = """
import jax, jax.numpy as jnp
from hgdpo_jax.diffusion.guidance import guided
from hgdpo_jax.sharding import AXES, data_mesh, shard_batch
batch = shard_batch((jnp.ones((8, 2, 3, 4)), jnp.ones((8, 7, 6)), jnp.zeros((8, 7, 6))), data_mesh())
predict = lambda latents, states: latents * states.mean(axis=(1, 2))[:, None, None, None]
compiled = jax.jit(lambda *arrays: guided(predict, *arrays, 5.0)).lower(*batch).compile()
assert compiled.output_shardings.spec[0] == AXES, compiled.output_shardings
print(compiled.as_text())
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert collective not in result.stdout
