import dataclasses
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.adapters import lora
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion import load_adapter, save_adapter
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion

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


def test_values_that_are_not_finite_are_no_pixels_and_no_latents(model):
    latents = np.zeros((3, *model.latent_shape(48, 64)), np.float32)
    latents[1, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="the latents to decode are not finite for 1 of 3 images, first for image 1"):
        model.decode_latents(latents)
    images, usable = model.decode_latents_checked(latents)
    assert usable.tolist() == [True, False, True]
    np.testing.assert_array_equal(images[::2], model.decode_latents(latents[::2]))
    vae = jax.tree.map(np.array, model.parameters["autoencoder"])
    for part in ("encoder", "decoder"):
        vae[part]["conv_out"]["bias"][0] = np.nan
    broken = model.with_parameters(autoencoder=vae)
    with pytest.raises(UserError, match="the autoencoder decodes to values that are not finite for 2 of 2 images"):
        broken.decode_latents(latents[::2])
    with pytest.raises(UserError, match="the autoencoder encodes to values that are not finite for 3 of 3 images"):
        broken.encode_images(images)


def test_a_used_model_frees_weights_and_programs_without_a_garbage_collection(tiny_base):
    gc.disable()
    try:
        used = StableDiffusion.load(tiny_base)
        used.decode_latents(np.zeros((1, *used.latent_shape(48, 64)), np.float32))
        kept = [weakref.ref(each) for each in (used.programs, *jax.tree.leaves(used.parameters))]
        del used
        assert not [each() for each in kept if each() is not None]
    finally:
        gc.enable()


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


# PEFT wonders about a second adapter, which is what is meant.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_a_style_lora_of_all_layers_and_the_text_encoder_and_a_second_lora_draw_as_in_pytorch(
    model, reference, tmp_path, format
):
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("peft")
    layers = model.lora_layers
    assert {"mid_block.attentions.0.proj_in", "text_encoder.encoder.layers.1.mlp.fc2"} < layers.keys()
    random = np.random.default_rng(0)

    def adapter_of(targets, rank):
        return {
            path: {name: random.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes}
            for path, (inputs, outputs) in targets.items()
            for shapes in [(("down", (inputs, rank)), ("up", (rank, outputs)))]
        }

    style = adapter_of({path: widths for path, widths in layers.items() if "attentions" in path or "text" in path}, 3)
    tuned = adapter_of(model.lora_targets, 2)
    unet = {path: entry for path, entry in style.items() if not path.startswith("text_encoder.")}
    save_adapter(unet, tmp_path / "unet.safetensors", format)
    save_adapter(style, tmp_path / "style.safetensors", format)
    save_adapter(tuned, tmp_path / "tuned.safetensors", "diffusers")
    adapters = [
        (load_adapter(tmp_path / f"{name}.safetensors"), scale) for name, scale in (("style", 0.7), ("tuned", 0.5))
    ]
    start = random.normal(size=(2, *model.latent_shape(48, 64))).astype(np.float32)
    ours = [model.generate(PROMPTS, [0, 1], on, initial_latents=start, **SIZE) for on in (adapters, adapters[1:], ())]
    for name in ("unet", "tuned"):
        reference.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name=name)
    # diffusers 0.42 looks for a text encoder's layers where transformers 5 no longer has them.
    plain = {name: tensor.clone() for name, tensor in reference.text_encoder.state_dict().items()}
    changes = {
        f"{path}.weight": 0.7 * entry["down"] @ entry["up"]
        for path, entry in lora.within(style, "text_encoder").items()
    }
    reference.text_encoder.load_state_dict(
        {
            name: tensor + torch.from_numpy(changes[name].T) if name in changes else tensor
            for name, tensor in plain.items()
        }
    )
    try:
        reference.set_adapters(["unet", "tuned"], [0.7, 0.5])
        theirs = reference(
            PROMPTS,
            latents=torch.from_numpy(start.transpose(0, 3, 1, 2)),
            width=48,
            height=64,
            num_inference_steps=4,
            guidance_scale=3.0,
            output_type="np",
        ).images
    finally:
        reference.unload_lora_weights()
        reference.text_encoder.load_state_dict(plain)
    assert np.abs(ours[0].astype(np.float64) - 255 * theirs).max() <= 2
    # Either one shows.
    assert all(np.abs(ours[0].astype(int) - other).max() > 20 for other in ours[1:])
    merged = model.with_adapter(*adapters[0]).with_adapter(*adapters[1])
    assert np.abs(merged.generate(PROMPTS, [0, 1], initial_latents=start, **SIZE).astype(int) - ours[0]).max() <= 1


def test_a_model_saved_with_a_merged_adapter_draws_in_diffusers_as_ours_with_the_adapter_on(model, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    adapter = lora.initialize(jax.random.key(0), model.lora_targets, rank=4)
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


def test_one_prompt_or_one_seed_counts_for_all_of_the_other(model):
    draw = functools.partial(model.generate, **SIZE, device_batch=1)
    expected = draw(["a man", "a man", "a woman"], [0, 1, 0])
    np.testing.assert_array_equal(draw("a man", [0, 1]), expected[:2])
    np.testing.assert_array_equal(draw(("a man", "a woman"), np.array([0])), expected[::2])
    without_hats = draw("a man", 0, negative_prompts="a hat")
    np.testing.assert_array_equal(draw(["a man"], [0], negative_prompts=["a hat"]), without_hats)
    assert np.any(without_hats != expected[:1])


def test_a_single_text_picture_or_latent_is_one_row(model):
    np.testing.assert_array_equal(model.tokenize("a man"), model.tokenize(["a man"]))
    np.testing.assert_array_equal(model.encode_prompts("a man"), model.encode_prompts(["a man"]))
    picture = np.full((64, 48, 3), 90, np.uint8)
    latents = model.encode_images(picture, device_batch=1)
    np.testing.assert_array_equal(latents, model.encode_images([picture], device_batch=1))
    np.testing.assert_array_equal(model.decode_latents(latents[0], 1), model.decode_latents(latents, 1))
    states = model.encode_prompts("a man")
    np.testing.assert_array_equal(
        model.predict_noise(latents[0], 9, states), model.predict_noise(latents, np.array([9]), states)
    )


@pytest.mark.parametrize(
    ("prompts", "seeds", "options", "message"),
    [
        (PROMPTS, [0, 1, 2], {}, "2 prompts, 3 seeds are given, expected as many of each, or one for all"),
        (PROMPTS, [0, 1], {"negative_prompts": ["a"] * 3}, "3 negative prompts"),
        (PROMPTS, [0, 1], {"initial_latents": np.zeros((3, 8, 6, 4))}, "3 initial latents"),
        (PROMPTS, 0, {"initial_latents": np.zeros((8, 6))}, r"initial_latents are float64\[8, 6\]"),
        ([], [0], {}, "no prompts are given"),
        (["a man", None], 0, {}, r"prompts\[1\] is None, expected a text"),
        ("a smile \ud83d", 0, {}, r"prompts\[0\] holds half a character"),
        ("a man", 0, {"negative_prompts": "a smile \ud83d"}, r"negative_prompts\[0\] holds half a character"),
        (3, 0, {}, "prompts is 3, expected one or several"),
        ("a man", [], {}, "no seeds are given"),
        ("a man", 0.5, {}, r"seeds\[0\] is 0.5, expected a whole number"),
        # JAX would draw the image of seed 0.
        ("a man", [1, 1 << 32], {}, r"seeds\[1\] is 4294967296, expected 0 to 4294967295"),
        ("a man", 0, {"adapters": ({}, 0.5)}, "adapters contain a dict, expected pairs"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(model, prompts, seeds, options, message):
    with pytest.raises(UserError, match=message) as error:
        model.generate(prompts, seeds, **SIZE, **options)
    assert "\n" not in str(error.value)


def test_images_that_are_no_pixels_are_refused(model):
    for images, message in (
        (np.zeros((2, 64, 48, 3)), r"float64\[2, 64, 48, 3\], expected uint8"),
        (np.zeros((64, 48), np.uint8), r"uint8\[64, 48\], expected"),
        ([np.zeros((64, 48, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)], "of several shapes"),
        (np.zeros((0, 64, 48, 3), np.uint8), "no images are given"),
    ):
        with pytest.raises(UserError, match=message):
            model.encode_images(images)


def test_latent_normalization_gives_the_adapted_model_the_channel_statistics_of_the_base(model):
    adapter = lora.initialize(jax.random.key(0), model.lora_targets, rank=4)
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)
    start = np.asarray(jax.random.normal(jax.random.key(1), (2, *model.latent_shape(48, 64))))
    inputs = start, model.encode_prompts(PROMPTS), model.encode_prompts(["", ""])
    options = {"steps": 3, "guidance": 2.0}
    base = model.draw_latents(*inputs, **options)
    adapters = [(adapter, jnp.float32(1.0))]
    plain = model.draw_latents(*inputs, adapters, **options)
    normalized = model.draw_latents(*inputs, adapters, latent_normalization=True, **options)
    for statistic in (np.mean, np.std):
        np.testing.assert_allclose(
            statistic(normalized, axis=(1, 2)), statistic(base, axis=(1, 2)), rtol=1e-3, atol=1e-4
        )
        assert np.abs(statistic(plain, axis=(1, 2)) - statistic(base, axis=(1, 2))).max() > 1e-2
    assert np.abs(normalized - base).max() > 1e-2


def test_one_program_draws_at_all_guidance_scales_but_where_there_is_none(model):
    fresh = dataclasses.replace(model, programs=None)
    for guidance in (3.0, 7, 1.0):
        fresh.generate(PROMPTS, [0, 1], **SIZE | {"guidance": guidance})
    assert fresh.programs.sample._cache_size() == 2


def test_negative_prompt_replaces_the_empty_one(model):
    plain = model.generate(PROMPTS, [0, 1], **SIZE)
    empty = model.generate(PROMPTS, [0, 1], negative_prompts=["", ""], **SIZE)
    negative = model.generate(PROMPTS, [0, 1], negative_prompts=["beard", "blur"], **SIZE)
    np.testing.assert_array_equal(plain, empty)
    assert (plain != negative).any()


def test_size_that_does_not_fit_the_levels_is_refused(model):
    with pytest.raises(UserError, match="multiples of 8"):
        model.latent_shape(50, 64)
