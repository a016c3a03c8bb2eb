"""Whole images of Stable Diffusion 1.5."""

import gc

import numpy as np
import pytest

from hgdpo_jax.families.stable_diffusion.model import StableDiffusion

pytestmark = pytest.mark.slow

PROMPT = "a woman with red hair"
SIZE = 256


def initial_latents():
    return np.random.default_rng(0).normal(size=(1, SIZE // 8, SIZE // 8, 4)).astype(np.float32)


def in_diffusers(folder):
    """The image in [0, 1] that diffusers draws."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline(
        PROMPT,
        latents=torch.from_numpy(initial_latents().transpose(0, 3, 1, 2).copy()),
        width=SIZE,
        height=SIZE,
        num_inference_steps=50,
        guidance_scale=5.0,
        output_type="np",
    ).images
    return image


def test_an_image_equals_that_of_diffusers(base_folder, report):
    theirs = in_diffusers(base_folder)
    gc.collect()
    model = StableDiffusion.load(base_folder)
    (ours,) = model.generate([PROMPT], [0], initial_latents=initial_latents(), steps=50, guidance=5.0)
    difference = np.abs(ours / 255 - theirs)
    report("whole image, mean absolute difference, grey levels of 255", 255 * difference.mean())
    report("whole image, largest difference, grey levels of 255", 255 * difference.max())
    # An image of one colour, or all black and white, would agree too easily.
    assert np.mean((theirs > 0.02) & (theirs < 0.98)) > 0.3
    assert theirs.std() > 0.1
    assert difference.mean() < 1 / 255
