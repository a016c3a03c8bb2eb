import numpy as np
import pytest

from hgdpo_jax import CLIPScore
from hgdpo_jax.scorers.sources import ScorerSource

PROMPTS = ["a man with a beard", "a woman", "a portrait of a person with grey hair"]


@pytest.fixture
def images():
    coarse = np.random.default_rng(0).integers(0, 256, size=(3, 8, 6, 3)).astype(np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


def test_scores_are_a_hundred_times_the_cosine_of_transformers(tiny_scorer, images):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(tiny_scorer).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tiny_scorer)
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tiny_scorer)
    with torch.no_grad():
        output = model(
            input_ids=tokens, pixel_values=torch.from_numpy(np.stack(processor(list(images))["pixel_values"]))
        )
    theirs = 100 * (output.image_embeds * output.text_embeds).sum(dim=-1).numpy()
    found = ScorerSource.parse(f"clip_score:{tiny_scorer}").load().score(images, PROMPTS)
    # Grey levels that the two bicubic filters round differently: 0.02 is 2e-4 of a cosine.
    np.testing.assert_allclose(found, theirs, rtol=1e-3, atol=0.02)
    assert np.abs(theirs).max() > 1


def test_embeddings_of_images_give_the_scores(tiny_scorer, images):
    scorer = CLIPScore.load(tiny_scorer)
    cosines = np.sum(scorer.embed_images(images) * scorer.encode_prompts(PROMPTS), axis=-1)
    np.testing.assert_allclose(scorer.score(images, PROMPTS), 100 * cosines, rtol=1e-4, atol=1e-4)
