"""U-Net, autoencoder and text encoder of Stable Diffusion 1.5."""

import gc

import jax
import numpy as np
import pytest

from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.models.parameters import apply

pytestmark = pytest.mark.slow

# Height and width, of latents and of pixels.
LATENTS = {"512x512": (64, 64), "704x1024": (128, 88)}
PIXELS = {size: (8 * height, 8 * width) for size, (height, width) in LATENTS.items()}
TIMESTEP = 631

# Float32: sums of thousands in another order. Bfloat16 has 8 bits, 2e-3 a rounding, and a signal meets hundreds of
# roundings on its way; a layer that is wrong or missing changes a random model by more than half.
LIMITS = {"float32": 1e-4, "bfloat16": 0.1}
EVERY_SIZE = [("float32", "512x512"), ("float32", "704x1024"), ("bfloat16", "512x512")]
every_size = pytest.mark.parametrize(("model", "size"), EVERY_SIZE, indirect=["model"])


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def latents(size):
    return draw((1, *LATENTS[size], 4))


def pictures(size):
    return np.tanh(draw((1, *PIXELS[size], 3)))


def text_states(seed=1):
    return draw((1, 77, 768), seed)


def token_ids():
    """A long prompt and a short one of words from the whole vocabulary."""
    ids = np.random.default_rng(2).integers(0, 49408, (2, 77)).astype(np.int32)
    ids[:, 0] = 598
    ids[0, 70:] = ids[1, 5:] = 599
    return ids


def channels_first(array):
    torch = pytest.importorskip("torch")
    # A copy: on a tensor that lies with its channels last, PyTorch's group norm adds up less precisely.
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def channels_last(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def expected_noise(base_folder, relative_error):
    """The U-Net's predictions in PyTorch, whose model is gone before ours comes."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel.from_pretrained(base_folder / "unet")

    def predict(latents, timestep=TIMESTEP, states_seed=1):
        states = torch.from_numpy(text_states(states_seed))
        return channels_last(unet(channels_first(latents), timestep, states).sample)

    with torch.no_grad():
        plain = predict(latents("512x512")[:, :16, :16])
        # Else the comparison would say nothing of these inputs.
        assert relative_error(predict(latents("512x512")[:, :16, :16], states_seed=2), plain) > 0.01
        assert relative_error(predict(latents("512x512")[:, :16, :16], timestep=1), plain) > 0.01
        assert relative_error(predict(latents("512x512")[:, 16:32, :16]), plain) > 0.1
        return {size: predict(latents(size)) for size in LATENTS}


@pytest.fixture(scope="module")
def expected_autoencoder(base_folder):
    """Posterior means and pictures in PyTorch."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL.from_pretrained(base_folder / "vae")
    with torch.no_grad():
        means = {size: channels_last(vae.encode(channels_first(pictures(size))).latent_dist.mean) for size in PIXELS}
        decoded = {size: channels_last(vae.decode(channels_first(latents(size))).sample) for size in LATENTS}
    return means, decoded


@pytest.fixture(scope="module")
def expected_states(base_folder):
    """Text states in PyTorch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    encoder = transformers.CLIPTextModel.from_pretrained(base_folder / "text_encoder")
    with torch.no_grad():
        return encoder(torch.from_numpy(token_ids())).last_hidden_state.numpy()


@pytest.fixture(scope="module")
def model(request, base_folder, expected_noise, expected_autoencoder, expected_states):
    # Nothing of PyTorch's models or of the one before may be left.
    jax.clear_caches()
    gc.collect()
    return StableDiffusion.load(base_folder, dtype=request.param)


@every_size
def test_unet_agrees_with_diffusers(model, size, expected_noise, relative_error, report):
    found = model.predict_noise(latents(size), [TIMESTEP], text_states())
    error = relative_error(found, expected_noise[size])
    report(f"U-Net, {size}, {model.unet.dtype}", error)
    assert error < LIMITS[str(model.unet.dtype)]


@pytest.mark.parametrize("model", ["float32", "bfloat16"], indirect=True)
def test_text_encoder_agrees_with_transformers(model, expected_states, relative_error, report):
    found = jax.jit(model.condition)(model.parameters, token_ids())
    error = relative_error(found, expected_states)
    report(f"text encoder, {model.text_encoder.dtype}", error)
    # The prompts differ in what they say, so their states should.
    assert relative_error(expected_states[0, 1:], expected_states[1, 1:]) > 0.1
    assert error < LIMITS[str(model.text_encoder.dtype)]


@every_size
def test_encoder_agrees_with_diffusers(model, size, expected_autoencoder, relative_error, report):
    encode = jax.jit(lambda parameters, images: apply(model.autoencoder, parameters, images, method="encode")[0])
    error = relative_error(encode(model.parameters["autoencoder"], pictures(size)), expected_autoencoder[0][size])
    report(f"VAE encoder, {size}, {model.autoencoder.dtype}", error)
    assert error < LIMITS[str(model.autoencoder.dtype)]


@every_size
def test_decoder_agrees_with_diffusers(model, size, expected_autoencoder, relative_error, report):
    decode = jax.jit(lambda parameters, latents: apply(model.autoencoder, parameters, latents, method="decode"))
    error = relative_error(decode(model.parameters["autoencoder"], latents(size)), expected_autoencoder[1][size])
    report(f"VAE decoder, {size}, {model.autoencoder.dtype}", error)
    assert error < LIMITS[str(model.autoencoder.dtype)]
