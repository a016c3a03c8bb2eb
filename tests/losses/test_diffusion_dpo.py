import math

import jax
import numpy as np
import pytest

from hgdpo_jax import losses


def test_loss_is_log_two_when_policy_equals_reference():
    winner, loser = np.random.default_rng(0).uniform(0, 1, (2, 5)).astype(np.float32)
    np.testing.assert_allclose(losses.diffusion_dpo(winner, loser, winner, loser, beta=2500.0), math.log(2), rtol=1e-6)


def test_loss_falls_where_the_policy_denoises_winners_better_or_losers_worse():
    zero, some = np.zeros(1, np.float32), np.full(1, 1e-4, np.float32)
    middle = losses.diffusion_dpo(zero, zero, zero, zero, beta=2500.0)
    assert losses.diffusion_dpo(-some, zero, zero, zero, beta=2500.0) < middle
    assert losses.diffusion_dpo(zero, some, zero, zero, beta=2500.0) < middle
    assert losses.diffusion_dpo(some, zero, zero, zero, beta=2500.0) > middle


def test_loss_and_gradient_stay_finite_far_from_the_reference():
    errors = np.zeros(2, np.float32), np.array([10, -10], np.float32)
    reference = np.zeros(2, np.float32), np.zeros(2, np.float32)
    value, gradient = jax.value_and_grad(lambda e: losses.diffusion_dpo(*e, *reference, beta=2500.0).sum())(errors)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient)


def test_loss_and_gradient_agree_with_pytorch_by_equation_3():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    beta, pairs = 2500.0, 6
    noise = random.standard_normal((pairs, 4, 3, 4), np.float32)
    winner, loser, reference_winner, reference_loser = noise + 0.05 * random.standard_normal(
        (4, pairs, 4, 3, 4), np.float32
    )

    def loss(predictions):
        policy = [losses.noise_prediction(x, noise) for x in predictions]
        reference = [losses.noise_prediction(x, noise) for x in (reference_winner, reference_loser)]
        return losses.diffusion_dpo(*policy, *reference, beta=beta)

    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (winner, loser)]

    def error(prediction):
        return ((torch.tensor(noise) - torch.as_tensor(prediction)) ** 2).mean(dim=(1, 2, 3))

    inside = (error(tensors[0]) - error(reference_winner)) - (error(tensors[1]) - error(reference_loser))
    expected = -torch.log(torch.sigmoid(-beta * inside))
    expected.sum().backward()
    gradient = jax.grad(lambda predictions: loss(predictions).sum())((winner, loser))
    # The errors' float32 rounding, 1e-10 absolute of 2.5e-3, grows by beta, to 1e-6 of a loss near 1.
    np.testing.assert_allclose(loss((winner, loser)), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradient, tensors, strict=True):
        assert np.linalg.norm(ours - theirs.grad.numpy()) < 1e-4 * np.linalg.norm(theirs.grad.numpy())
