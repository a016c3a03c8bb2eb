import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.adapters import lora
from hgdpo_jax.diffusion.schedule import add_noise
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.objectives import policy_losses
from hgdpo_jax.objectives.sft import SFT


@pytest.fixture(scope="module")
def model(tiny_base):
    return StableDiffusion.load(tiny_base)


def test_loss_is_the_squared_error_of_the_noise_in_the_winner_with_the_lora_on(model):
    random = np.random.default_rng(0)
    shape = (2, *model.latent_shape(48, 64))
    batch = {
        "winner_latents": random.normal(size=shape).astype(np.float32),
        # Were they looked at, the loss would not be finite.
        "loser_latents": np.full(shape, np.nan, np.float32),
        "tokens": model.tokenize(["a man", "a woman with red hair"]),
        "noise": random.normal(size=shape).astype(np.float32),
        "timesteps": np.array([0, 900]),
    }
    adapter = lora.initialize(jax.random.key(0), model.lora_targets, rank=4)
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)
    values = jax.jit(lambda tree: policy_losses(SFT(), model, tree, model.parameters, batch, clip_skip=1))(adapter)

    noisy = add_noise(model.schedule, jnp.asarray(batch["winner_latents"]), batch["noise"], batch["timesteps"])
    states = model.encode_prompts(["a man", "a woman with red hair"], clip_skip=1)
    predicted = model.predict_noise(noisy, batch["timesteps"], states, [(adapter, 1.0)])
    expected = np.square(predicted - batch["noise"]).mean(axis=(1, 2, 3))
    # float32 sums in another order.
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
    without = np.square(model.predict_noise(noisy, batch["timesteps"], states) - batch["noise"]).mean(axis=(1, 2, 3))
    assert np.abs(without - expected).min() > 1e-3
