import jax
import numpy as np
import pytest

from hgdpo_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from hgdpo_jax.weights.conversion import to_tree


@pytest.fixture(scope="module")
def pair():
    """The same random autoencoder in PyTorch and here."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    reference = diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        layers_per_block=2,
    )
    with torch.no_grad():
        for parameter in reference.parameters():
            # Fresh norms have gain 1 and shift 0, which hides mistakes.
            parameter.add_(0.05 * torch.randn_like(parameter))
    model = Autoencoder(AutoencoderConfig.from_dict(dict(reference.config)))
    images, noise = np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 4, 4, 4), np.float32)
    template = jax.eval_shape(model.init, jax.random.key(0), images, noise)["params"]
    tensors = {name: value.numpy() for name, value in reference.state_dict().items()}
    return reference, model, {"params": to_tree(tensors, template, "vae")}


def relative(found, expected):
    expected = expected.permute(0, 2, 3, 1).numpy()
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_encoder_agrees_with_diffusers(pair):
    torch = pytest.importorskip("torch")
    reference, model, variables = pair
    images = np.random.default_rng(0).uniform(-1, 1, (2, 24, 16, 3)).astype(np.float32)
    mean, log_variance = jax.jit(lambda *inputs: model.apply(*inputs, method="encode"))(variables, images)
    with torch.no_grad():
        posterior = reference.encode(torch.tensor(images).permute(0, 3, 1, 2)).latent_dist
    assert mean.shape == (2, 6, 4, 4)
    assert relative(mean, posterior.mean) < 1e-4
    assert relative(log_variance, posterior.logvar) < 1e-4


def test_decoder_agrees_with_diffusers(pair):
    torch = pytest.importorskip("torch")
    reference, model, variables = pair
    latents = np.random.default_rng(1).normal(size=(2, 6, 4, 4)).astype(np.float32)
    images = jax.jit(lambda *inputs: model.apply(*inputs, method="decode"))(variables, latents)
    with torch.no_grad():
        expected = reference.decode(torch.tensor(latents).permute(0, 3, 1, 2)).sample
    assert images.shape == (2, 24, 16, 3)
    assert relative(images, expected) < 1e-4
