import numpy as np

from hgdpo_jax.diffusion.latent_normalization import normalize


def test_every_channel_of_every_image_gets_the_references_mean_and_deviation():
    random = np.random.default_rng(0)
    target = random.normal(2.0, 3.0, (2, 6, 5, 4)).astype(np.float32)
    reference = random.normal(-1.0, 0.5, (2, 6, 5, 4)).astype(np.float32)
    result = np.asarray(normalize(target, reference))
    # Sums of 30 float32 values.
    np.testing.assert_allclose(result.mean((1, 2)), reference.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(result.std((1, 2)), reference.std((1, 2)), rtol=1e-5)
    correlation = np.corrcoef(result[1, :, :, 2].ravel(), target[1, :, :, 2].ravel())[0, 1]
    assert correlation > 1 - 1e-6


def test_latents_normalised_to_themselves_stay():
    latents = np.random.default_rng(0).standard_normal((2, 6, 5, 4), np.float32)
    np.testing.assert_allclose(normalize(latents, latents), latents, atol=1e-6)


def test_a_constant_channel_gets_the_references_mean_and_not_infinity():
    reference = np.random.default_rng(0).standard_normal((1, 6, 5, 4), np.float32)
    result = np.asarray(normalize(np.ones_like(reference), reference))
    np.testing.assert_allclose(result, np.broadcast_to(reference.mean((1, 2), keepdims=True), result.shape), atol=1e-6)
