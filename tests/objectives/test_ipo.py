import jax
import jax.numpy as jnp
import numpy as np

from hgdpo_jax.adapters import lora
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.objectives import find, policy_losses
from hgdpo_jax.objectives.ipo import IPO, ipo


def test_loss_and_gradient_are_those_computed_by_hand():
    margin = jnp.array([0.0009, -0.0004, 0.0007, -0.0003])
    loss, gradient = jax.value_and_grad(lambda margin: ipo(margin, beta=2500.0).mean())(margin)
    # beta m is 2.25, -1, 1.75 and -0.75; of float32 the margins have seven digits.
    np.testing.assert_allclose(loss, 2.109375, rtol=1e-5)
    np.testing.assert_allclose(gradient, [2187.5, -1875.0, 1562.5, -1562.5], rtol=1e-5)


def test_loss_is_a_quarter_while_the_lora_changes_nothing(tiny_base):
    model = StableDiffusion.load(tiny_base)
    random = np.random.default_rng(0)
    latents, losers, noise = random.normal(size=(3, 2, *model.latent_shape(48, 64))).astype(np.float32)
    batch = {"winner_latents": latents, "loser_latents": losers, "tokens": model.tokenize(["a man", "a woman"])}
    batch |= {"noise": noise, "timesteps": np.array([0, 900])}
    fresh = lora.initialize(jax.random.key(0), model.lora_targets, rank=2)
    values = jax.jit(lambda tree: policy_losses(IPO(), model, tree, model.parameters, batch))(fresh)
    # beta = 2500 times the rounding of two equal sums of float32.
    np.testing.assert_allclose(values["loss"], 0.25, atol=1e-3)


def test_a_config_finds_it_by_its_name():
    assert find("ipo") is IPO
