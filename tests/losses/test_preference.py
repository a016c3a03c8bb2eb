import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax import losses


def test_loss_is_log_two_for_equal_scores_and_a_clear_preference():
    scores = jnp.full(2, 20.0)
    np.testing.assert_allclose(losses.preference(scores, scores, jnp.array([1.0, 0.0])), math.log(2), rtol=1e-6)


def test_loss_is_zero_for_equal_scores_and_a_tie():
    scores = jnp.full(1, 20.0)
    np.testing.assert_allclose(losses.preference(scores, scores, jnp.array([0.5])), 0.0, atol=1e-7)


def test_loss_and_gradient_are_the_divergence_of_pytorch():
    torch = pytest.importorskip("torch")
    first, second = np.random.default_rng(0).normal(20, 2, (2, 5)).astype(np.float32)
    label = np.array([0.0, 0.2, 0.5, 0.9, 1.0], np.float32)
    scores = torch.tensor(np.stack([first, second], axis=1), requires_grad=True)
    labels = torch.tensor(np.stack([label, 1 - label], axis=1))
    expected = torch.nn.functional.kl_div(scores.log_softmax(dim=1), labels, reduction="none").sum(dim=1)
    expected.sum().backward()
    # Float32: one rounding of scores near 20.
    np.testing.assert_allclose(losses.preference(first, second, label), expected.detach().numpy(), atol=3e-6)
    gradient = jax.grad(lambda a, b: losses.preference(a, b, label).sum(), argnums=(0, 1))(first, second)
    np.testing.assert_allclose(np.stack(gradient, axis=1), scores.grad.numpy(), atol=3e-6)
