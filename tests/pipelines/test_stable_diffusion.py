import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.adapters import lora
from hgdpo_jax.errors import UserError
from hgdpo_jax.pipelines.stable_diffusion import StableDiffusion

PROMPTS = ["a man with a beard", "a woman"]
SIZE = {"width": 48, "height": 64, "steps": 4, "guidance": 3.0}


@pytest.fixture(scope="module")
def model(tiny_base):
    return StableDiffusion.load(tiny_base)


def test_whole_images_equal_diffusers(model, tiny_base):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    start = np.random.default_rng(0).normal(size=(2, *model.latent_shape(48, 64))).astype(np.float32)
    ours = model.generate(PROMPTS, [0, 1], initial_latents=start, **SIZE)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    theirs = pipeline(
        PROMPTS,
        latents=torch.from_numpy(start.transpose(0, 3, 1, 2)),
        width=48,
        height=64,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="np",
    ).images
    difference = np.abs(ours.astype(np.float64) - 255 * theirs)
    # Rounding of the last step's pixels, and what four steps add of float32.
    assert difference.max() <= 2


def test_same_seed_gives_the_same_image_in_any_company(model):
    both = model.generate(PROMPTS, [3, 4], device_batch=2, **SIZE)
    alone = model.generate(PROMPTS[1:], [4], device_batch=1, **SIZE)
    assert np.abs(both[1].astype(int) - alone[0]).max() <= 1


def test_latent_normalization_gives_the_adapted_model_the_channel_statistics_of_the_base(model):
    adapter = lora.initialize(jax.random.key(0), lora.find_targets(model.parameters["unet"]), rank=4)
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)
    start = np.asarray(jax.random.normal(jax.random.key(1), (2, *model.latent_shape(48, 64))))
    options = {"steps": 3, "guidance": 2.0}
    base = model.generate_latents(PROMPTS, start, **options)
    adapters = [(adapter, jnp.float32(1.0))]
    plain = model.generate_latents(PROMPTS, start, adapters, **options)
    normalized = model.generate_latents(PROMPTS, start, adapters, latent_normalization=True, **options)
    for statistic in (np.mean, np.std):
        np.testing.assert_allclose(
            statistic(normalized, axis=(1, 2)), statistic(base, axis=(1, 2)), rtol=1e-3, atol=1e-4
        )
        assert np.abs(statistic(plain, axis=(1, 2)) - statistic(base, axis=(1, 2))).max() > 1e-2
    assert np.abs(normalized - base).max() > 1e-2


def test_negative_prompt_replaces_the_empty_one(model):
    plain = model.generate(PROMPTS, [0, 1], **SIZE)
    empty = model.generate(PROMPTS, [0, 1], negative_prompts=["", ""], **SIZE)
    negative = model.generate(PROMPTS, [0, 1], negative_prompts=["beard", "blur"], **SIZE)
    np.testing.assert_array_equal(plain, empty)
    assert (plain != negative).any()


def test_size_that_does_not_fit_the_levels_is_refused(model):
    with pytest.raises(UserError, match="multiples of 8"):
        model.latent_shape(50, 64)
