import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hgdpo_jax import losses
from hgdpo_jax.adapters import lora
from hgdpo_jax.diffusion import ddpm
from hgdpo_jax.diffusion.schedule import add_noise, training_target
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.objectives import policy_losses
from hgdpo_jax.objectives.dpo import DPO
from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.training.accumulation import make_accumulating_step
from hgdpo_jax.training.optimizer import make_optimizer


@pytest.fixture(scope="module")
def model(tiny_base):
    return StableDiffusion.load(tiny_base)


@pytest.fixture(scope="module")
def batch(model):
    random = np.random.default_rng(0)
    shape = (3, *model.latent_shape(48, 64))
    return {
        "winner_latents": random.normal(size=shape).astype(np.float32),
        "loser_latents": random.normal(size=shape).astype(np.float32),
        "tokens": model.tokenize(["a man", "a woman with red hair", "a portrait"]),
        "noise": random.normal(size=shape).astype(np.float32),
        "timesteps": np.array([0, 500, 999]),
    }


@pytest.fixture(scope="module")
def adapter(model):
    fresh = lora.initialize(jax.random.key(0), model.lora_targets, rank=4)
    return jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape), fresh)


def test_loss_is_log_two_while_the_lora_changes_nothing(model, batch):
    fresh = lora.initialize(jax.random.key(0), model.lora_targets, rank=4)
    values = jax.jit(lambda tree: policy_losses(DPO(), model, tree, model.parameters, batch))(fresh)
    # beta = 2500 times the rounding of two equal sums of float32.
    np.testing.assert_allclose(values["loss"], np.log(2), rtol=1e-3)
    np.testing.assert_array_equal(values["statistic_loss"], 0)


# Where the gradient rematerialises activations, two calls would be compiled most differently.
@pytest.mark.parametrize("remat", ["none", "activations"])
def test_in_bfloat16_policy_and_reference_are_the_same_while_the_lora_changes_nothing(tiny_base, batch, remat):
    model = StableDiffusion.load(tiny_base, dtype="bfloat16").with_remat(remat)
    optimizer = make_optimizer(learning_rate=0.0)
    fresh = lora.initialize(jax.random.key(0), model.lora_targets, rank=4)
    state = {"parameters": fresh, "optimizer": optimizer.init(fresh)}
    losses, draw = functools.partial(policy_losses, DPO(), model), functools.partial(DPO().draw, timesteps=1000)
    step = make_accumulating_step(losses, optimizer, draw, 1, data_mesh(jax.devices()[:1]))
    for seed in range(4):
        state, scalars = step(state, model.parameters, batch, jax.random.key(seed))
        # beta = 2500 times the rounding of two equal sums of float32.
        assert abs(scalars["margin"]) < 1e-3
        assert scalars["statistic_loss"] == 0


def test_in_bfloat16_errors_and_gradients_are_those_of_float32_but_for_rounding(tiny_base, model, batch, adapter):
    # A LoRA whose policy differs by more than rounding.
    adapter = jax.tree.map(lambda x: 3 * x, adapter)

    def terms_and_gradients(model):
        def loss(tree):
            # With the method's beta rounding would move the sigmoid.
            values = policy_losses(DPO(1.0, 1.0), model, tree, model.parameters, batch)
            return values["loss"].mean(), {name: values[name] for name in values if name.endswith("_error")}

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter)

    (_, rounded), gradients = terms_and_gradients(StableDiffusion.load(tiny_base, dtype="bfloat16"))
    (_, expected), expected_gradients = terms_and_gradients(model)
    # bfloat16 has 8 bits.
    for name in expected:
        np.testing.assert_allclose(rounded[name], expected[name], rtol=5e-3)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, gradients, expected_gradients))
    # Versions of XLA round at other places: 4 to 6 per cent.
    assert difference < 0.08 * optax.tree.norm(expected_gradients)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_terms_equal_their_definitions_on_separate_unet_calls_and_explicit_sampler_steps(
    model, batch, adapter, prediction_type
):
    model = dataclasses.replace(
        model, schedule=dataclasses.replace(model.schedule, prediction_type=prediction_type), programs=None
    )
    values = jax.jit(lambda tree: policy_losses(DPO(), model, tree, model.parameters, batch, clip_skip=1))(adapter)
    states = model.condition(model.parameters, batch["tokens"], clip_skip=1)
    timesteps, noise = jnp.asarray(batch["timesteps"]), jnp.asarray(batch["noise"])

    def errors_and_step(latents, adapters):
        noisy = add_noise(model.schedule, jnp.asarray(latents), noise, timesteps)
        predicted = model.prediction(model.parameters, noisy, timesteps, states, adapters)
        stepped = ddpm.step(model.schedule, predicted, timesteps, noisy, noise=noise)
        # For velocities as in diffusers' DPO example, whose target is `get_velocity`.
        return losses.noise_prediction(predicted, training_target(model.schedule, latents, noise, timesteps)), stepped

    policy_winner, policy_step = errors_and_step(batch["winner_latents"], [(adapter, 1.0)])
    reference_winner, reference_step = errors_and_step(batch["winner_latents"], ())
    policy_loser, _ = errors_and_step(batch["loser_latents"], [(adapter, 1.0)])
    reference_loser, _ = errors_and_step(batch["loser_latents"], ())
    dpo = losses.diffusion_dpo(policy_winner, policy_loser, reference_winner, reference_loser, beta=2500.0)
    # beta = 2500 enlarges the rounding of the errors' float32 sums.
    np.testing.assert_allclose(values["dpo_loss"], dpo, rtol=2e-3, atol=2e-3)
    # At t = 0 the difference of two latents cancels but four digits.
    statistic = 1e4 * losses.statistic_matching(policy_step, reference_step)
    np.testing.assert_allclose(values["statistic_loss"], statistic, rtol=2e-3)


def test_gradient_reaches_every_low_rank_factor(model, batch, adapter):
    def loss(tree):
        return policy_losses(DPO(), model, tree, model.parameters, batch)["loss"].mean()

    gradients = jax.jit(jax.grad(loss))(adapter)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))
