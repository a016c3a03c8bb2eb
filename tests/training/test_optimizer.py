import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hgdpo_jax.training.optimizer import make_optimizer

PARAMETERS = {"matrix": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)}


def reference(learning_rate, warmup_steps, weight_decay, max_gradient_norm):
    """The same by optax, with all numbers as constants."""
    warm = optax.linear_schedule(learning_rate / max(warmup_steps, 1), learning_rate, warmup_steps - 1)
    schedule = warm if warmup_steps else optax.constant_schedule(learning_rate)
    clip = optax.clip_by_global_norm(max_gradient_norm) if max_gradient_norm else optax.identity()
    return optax.chain(clip, optax.adamw(schedule, weight_decay=weight_decay))


@pytest.mark.parametrize("warmup_steps", [0, 1, 4])
@pytest.mark.parametrize(("weight_decay", "max_gradient_norm"), [(0.0, 0.0), (0.1, 0.5)])
def test_numbers_that_are_arguments_of_a_program_update_as_optax_does_with_constants(
    warmup_steps, weight_decay, max_gradient_norm
):
    numbers = {
        "learning_rate": 0.1,
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "max_gradient_norm": max_gradient_norm,
    }
    expected, update = reference(**numbers), jax.jit(lambda numbers, *rest: make_optimizer(**numbers).update(*rest))
    state, state_expected = make_optimizer(**numbers).init(PARAMETERS), expected.init(PARAMETERS)
    assert jax.tree.structure(state) == jax.tree.structure(state_expected)
    parameters = PARAMETERS
    for step in range(6):
        gradients = {"matrix": jnp.asarray(np.random.default_rng(step).normal(size=(3, 2)), jnp.float32)}
        updates, state = update(numbers, gradients, state, parameters)
        updates_expected, state_expected = expected.update(gradients, state_expected, parameters)
        # Roundings of float32, in which weight decay and Adam's direction may cancel: updates are a tenth.
        np.testing.assert_allclose(updates["matrix"], updates_expected["matrix"], rtol=1e-6, atol=1e-7)
        parameters = optax.apply_updates(parameters, updates)
