import jax.numpy as jnp
import numpy as np

from hgdpo_jax import losses


def test_one_mean_squared_error_an_image_in_float32():
    noise = np.zeros((3, 2, 5, 4), np.float32)
    predicted = np.array([0.0, 1.0, 2.0], np.float32)[:, None, None, None] + noise
    result = losses.noise_prediction(jnp.asarray(predicted, jnp.bfloat16), jnp.asarray(noise, jnp.bfloat16))
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, [0.0, 1.0, 4.0])
