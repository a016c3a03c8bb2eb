import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.scorers.preprocess import preprocess

PROMPTS = ["a man with a beard", "a woman", "a portrait of a person with grey hair"]


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, size=(3, 8, 6, 3)).astype(np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


def test_scores_equal_transformers_with_its_own_processor(tiny_scorer, images):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours = PickScore.load(tiny_scorer).score(images, PROMPTS)
    model = transformers.CLIPModel.from_pretrained(tiny_scorer).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tiny_scorer)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tiny_scorer)
    inputs = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")
    pixels = torch.from_numpy(np.stack(processor(list(images))["pixel_values"]))
    with torch.no_grad():
        theirs = model(input_ids=inputs["input_ids"], pixel_values=pixels).logits_per_image.diagonal().numpy()
    # Grey levels that the two bicubic filters round differently; a score may be near zero, 5e-3 is 2.5e-4 of a cosine.
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize(("height", "width"), [(1024, 704), (256, 300), (224, 224)])
def test_pixels_are_those_of_transformers_own_processor_even_of_noise(height, width):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    processor = transformers.CLIPImageProcessorPil()
    (theirs,) = processor(list(noise))["pixel_values"]
    ours = preprocess(noise, 224, "crop", processor.image_mean, processor.image_std)[0]
    levels = 255 * np.abs(ours - theirs.transpose(1, 2, 0)) * processor.image_std
    # PIL's weights are whole numbers: a pixel in a thousand is rounded the other way.
    assert levels.max() < 1.01
    assert np.mean(levels > 0.5) < 2e-3


def test_padding_shows_what_cropping_loses(tiny_scorer, images):
    changed = images.copy()
    changed[:, :8] = 255 - changed[:, :8]
    cropped, padded = (PickScore.load(tiny_scorer, framing=framing) for framing in ("crop", "pad"))
    np.testing.assert_array_equal(cropped.score(images, PROMPTS), cropped.score(changed, PROMPTS))
    assert np.abs(padded.score(images, PROMPTS) - padded.score(changed, PROMPTS)).min() > 1e-3


def test_a_score_does_not_depend_on_the_batch(tiny_scorer, images):
    scorer = PickScore.load(tiny_scorer)
    together = scorer.score(images, PROMPTS)
    alone = [scorer.score(images[i : i + 1], PROMPTS[i : i + 1], device_batch=1)[0] for i in range(3)]
    # 1e-4 is 5e-6 of a cosine: float32 sums in another order.
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-4)


def test_unknown_framing_is_refused(tiny_scorer):
    with pytest.raises(UserError, match="framing"):
        PickScore.load(tiny_scorer, framing="stretch")
