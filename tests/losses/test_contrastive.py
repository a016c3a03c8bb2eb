import math

import jax
import numpy as np
import pytest

from hgdpo_jax import losses


def embeddings():
    random = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    return random / np.linalg.norm(random, axis=-1, keepdims=True)


def test_loss_is_the_logarithm_of_the_batch_when_nothing_is_told_apart():
    text, image = embeddings()
    np.testing.assert_allclose(losses.contrastive(text, image, 0.0), math.log(6), rtol=1e-6)


def test_mean_loss_and_gradient_are_those_of_clip_in_pytorch():
    torch = pytest.importorskip("torch")
    text, image = embeddings()
    texts, images = (torch.tensor(x, requires_grad=True) for x in (text, image))
    logits, target = 14.0 * texts @ images.T, torch.arange(6)
    expected = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    expected.backward()
    value, gradient = jax.value_and_grad(lambda a, b: losses.contrastive(a, b, 14.0).mean(), argnums=(0, 1))(
        text, image
    )
    # Float32 sums of eight products.
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for ours, theirs in zip(gradient, (texts, images), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=1e-5)
