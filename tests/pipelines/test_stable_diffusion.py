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


@pytest.fixture(scope="module")
def reference(tiny_base):
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    if not hasattr(pipeline.text_encoder, "text_model"):
        # diffusers looks there for the final norm, which newer transformers keep one level higher.
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    return pipeline


@pytest.mark.parametrize(("negative_prompt", "clip_skip"), [("", 0), ("blurred, a beard", 1)])
def test_whole_images_equal_diffusers(model, reference, negative_prompt, clip_skip):
    torch = pytest.importorskip("torch")
    start = np.random.default_rng(0).normal(size=(2, *model.latent_shape(48, 64))).astype(np.float32)
    negative_prompts = [negative_prompt] * 2
    ours = model.generate(
        PROMPTS,
        [0, 1],
        initial_latents=start,
        negative_prompts=negative_prompts,
        clip_skip=clip_skip,
        steps=50,
        guidance=5.0,
    )
    theirs = reference(
        PROMPTS,
        negative_prompt=negative_prompts,
        clip_skip=clip_skip,
        latents=torch.from_numpy(start.transpose(0, 3, 1, 2)),
        width=48,
        height=64,
        num_inference_steps=50,
        guidance_scale=5.0,
        output_type="np",
    ).images
    difference = np.abs(ours.astype(np.float64) - 255 * theirs)
    # Rounding of the last step's pixels, and what fifty steps add of float32.
    assert difference.max() <= 2


def test_a_model_saved_with_a_merged_adapter_draws_in_diffusers_as_ours_with_the_adapter_on(model, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    adapter = lora.initialize(jax.random.key(0), lora.find_targets(model.parameters["unet"]), rank=4)
    adapter = jax.tree.map(lambda x: np.asarray(x + 0.1), adapter)
    model.with_adapter(adapter, 0.5).save(tmp_path, storage="float32")
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    random = np.random.default_rng(0)
    latents = random.normal(size=(2, *model.latent_shape(48, 64))).astype(np.float32)
    states = model.encode_prompts(PROMPTS)
    timesteps = np.array([10, 900])
    ours = model.predict_noise(latents, timesteps, states, [(adapter, 0.5)])
    with torch.no_grad():
        theirs = unet(*map(torch.from_numpy, (latents.transpose(0, 3, 1, 2), timesteps, states))).sample
    assert np.abs(ours - model.predict_noise(latents, timesteps, states)).max() > 1e-2
    # float32 sums in another order.
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    again = StableDiffusion.load(tmp_path)
    np.testing.assert_array_equal(again.encode_prompts(PROMPTS), states)


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_text_states_equal_diffusers(model, reference, clip_skip):
    theirs, _ = reference.encode_prompt(PROMPTS, "cpu", 1, False, clip_skip=clip_skip)
    ours = model.encode_prompts(PROMPTS, clip_skip)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(ours - model.encode_prompts(PROMPTS, 1 - clip_skip)).max() > 0.1


@pytest.mark.parametrize("clip_skip", [-1, 2])
def test_clip_skip_that_leaves_no_layer_is_refused(model, clip_skip):
    with pytest.raises(UserError, match=f"clip_skip is {clip_skip}, expected 0 to 1"):
        model.encode_prompts(PROMPTS, clip_skip)


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
