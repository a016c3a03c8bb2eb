"""PickScore, a CLIP ViT-H/14."""

import gc

import jax
import numpy as np
import pytest

from hgdpo_jax.models.parameters import apply
from hgdpo_jax.scorers.pick_score import PickScore

pytestmark = pytest.mark.slow

PROMPTS = ["a woman with red hair", "a man with a beard and a hat, a portrait before a blue wall"]
HEIGHT, WIDTH = 1024, 704

# As in test_models.py.
LIMITS = {"float32": 1e-4, "bfloat16": 0.1}


def images():
    """A smooth picture, and one of noise."""
    random = np.random.default_rng(0)
    waves = random.normal(size=(3, 8, 2)) / 100
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    phases = rows[..., None, None] * waves[..., 0] + columns[..., None, None] * waves[..., 1]
    smooth = 127.5 + 127.5 * np.tanh(np.sin(phases).sum(axis=-1))
    return np.stack([smooth, random.integers(0, 256, smooth.shape)]).astype(np.uint8)


@pytest.fixture(scope="module")
def expected(scorer_folder):
    """What transformers makes of the images and prompts: its pixels, both towers' embeddings and the scores."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(scorer_folder)
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    processor = transformers.CLIPImageProcessorPil.from_pretrained(scorer_folder)
    pixels = np.stack(processor(list(images()))["pixel_values"])
    model = transformers.CLIPModel.from_pretrained(scorer_folder).eval()
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=torch.from_numpy(pixels))
    return {
        "pixels": pixels.transpose(0, 2, 3, 1),
        "text": output.text_embeds.numpy(),
        "images": output.image_embeds.numpy(),
        # Images by prompts.
        "scores": output.logits_per_image.numpy(),
    }


@pytest.fixture(scope="module")
def scorer(request, scorer_folder, expected):
    # Nothing of PyTorch's model or of the one before may be left.
    jax.clear_caches()
    gc.collect()
    return PickScore.load(scorer_folder, dtype=request.param)


@pytest.mark.parametrize("scorer", LIMITS, indirect=True)
def test_both_towers_agree_with_transformers(scorer, expected, relative_error, report):
    embed = jax.jit(lambda parameters, pixels: apply(scorer.clip, parameters, pixels, method="embed_images"))
    found = {"text": scorer.encode_prompts(PROMPTS), "images": embed(scorer.parameters, expected["pixels"])}
    for tower, embeddings in found.items():
        error = relative_error(embeddings, expected[tower])
        report(f"CLIP ViT-H/14, {tower}, {scorer.clip.dtype}", error)
        # Two inputs have embeddings of their own.
        assert relative_error(expected[tower][0], expected[tower][1]) > 0.1
        assert error < LIMITS[str(scorer.clip.dtype)]


@pytest.mark.parametrize("scorer", ["float32"], indirect=True)
def test_scores_agree_with_transformers_and_its_processor(scorer, expected, report):
    rows = [(image, prompt) for image in range(2) for prompt in range(2)]
    found = scorer.score(images()[[image for image, _ in rows]], [PROMPTS[prompt] for _, prompt in rows])
    theirs = expected["scores"].reshape(-1)
    difference = np.abs(found - theirs)
    report("PickScore, smooth picture, relative", (difference / np.abs(theirs))[:2].max())
    report("PickScore, noise, relative", (difference / np.abs(theirs))[2:].max())
    # A score near zero would have no relative error to speak of.
    assert np.abs(theirs).min() > 1
    np.testing.assert_allclose(found, theirs, rtol=1e-3)
