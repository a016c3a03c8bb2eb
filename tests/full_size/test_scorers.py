"""HPSv2, CLIP score and Aesthetic at full width, in towers of two layers: PickScore's test has a ViT-H/14 of all."""

import numpy as np
import pytest

from hgdpo_jax import Aesthetic, CLIPScore, HPSv2

pytestmark = pytest.mark.slow

PROMPTS = ["a woman with red hair", "a man with a beard and a hat, a portrait before a blue wall"]
SIZES = [(1024, 704), (704, 1024)]
MEAN, SPREAD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def images(height, width):
    """A smooth picture, and one of noise."""
    random = np.random.default_rng(0)
    waves = random.normal(size=(3, 8, 2)) / 100
    rows, columns = np.mgrid[:height, :width]
    phases = rows[..., None, None] * waves[..., 0] + columns[..., None, None] * waves[..., 1]
    smooth = 127.5 + 127.5 * np.tanh(np.sin(phases).sum(axis=-1))
    return np.stack([smooth, random.integers(0, 256, smooth.shape)]).astype(np.uint8)


@pytest.fixture(scope="module")
def tokens(toon_tokenizer):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(toon_tokenizer)
    return tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]


def test_hps_v2_agrees_with_open_clip(make_open_clip, make_folder, toon_tokenizer, tokens, relative_error, report):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    model = make_open_clip(image_width=1280, text_width=1024, layers=2, size=224, vocabulary=49408, projection=1024)
    path = make_folder("hps") / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    scorer = HPSv2.load(str(path), tokenizer=str(toon_tokenizer))
    with torch.no_grad():
        texts = model(tokens).numpy()
    found = scorer.encode_prompts(PROMPTS, device_batch=1)
    report("HPSv2, text", relative_error(found, texts))
    assert relative_error(found, texts) < 1e-5
    for height, width in SIZES:
        pictures = images(height, width)
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        x = functional.interpolate(x, (224, 154) if height > width else (154, 224), mode="bicubic", antialias=True)
        x = functional.pad(x, (35, 35, 0, 0) if height > width else (0, 0, 35, 35))
        with torch.no_grad():
            x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SPREAD)[:, None, None]
            embeddings = model.visual(x).numpy()
        found = scorer.embed_images(pictures, device_batch=1)
        report(f"HPSv2, {height}x{width} images with preprocessing", relative_error(found, embeddings))
        assert relative_error(found, embeddings) < 1e-4
        scores = scorer.score(pictures, PROMPTS, device_batch=1)
        report(f"HPSv2, {height}x{width}, largest difference", np.abs(scores - (embeddings * texts).sum(axis=-1)).max())
        np.testing.assert_allclose(scores, (embeddings * texts).sum(axis=-1), atol=1e-5)


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: "{}x{}".format(*size))
def expected(request, clip_l_folder, tokens):
    """Images, and what transformers and its own processor make of them and of the prompts."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pictures = images(*request.param)
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(clip_l_folder)(list(pictures))["pixel_values"]
    model = transformers.CLIPModel.from_pretrained(clip_l_folder).eval()
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=torch.from_numpy(np.stack(pixels)))
    return pictures, output.image_embeds, output.text_embeds


def test_clip_score_agrees_with_transformers(clip_l_folder, expected, report):
    pictures, embeddings, texts = expected
    theirs = 100 * (embeddings * texts).sum(dim=-1).numpy()
    found = CLIPScore.load(str(clip_l_folder)).score(pictures, PROMPTS, device_batch=1)
    report("CLIP score of 100, largest difference", np.abs(found - theirs).max())
    # Grey levels that the two bicubic filters round differently.
    np.testing.assert_allclose(found, theirs, atol=0.02)
    assert np.abs(theirs).min() > 0.1


def test_aesthetic_agrees_with_the_predictor(clip_l_folder, make_folder, expected, report):
    torch = pytest.importorskip("torch")
    pictures, embeddings, _ = expected
    torch.manual_seed(7)
    # Dropouts lie between in training, and number what follows them.
    widths = {"0": (768, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16), "7": (16, 1)}
    head = torch.nn.ModuleDict({"layers": torch.nn.Sequential()})
    for name, (width, following) in widths.items():
        layer = torch.nn.Linear(width, following)
        # Random towers give all images much the same embedding: the head makes their differences large.
        layer.weight.data.normal_(0.0, 2 * width**-0.5)
        head["layers"].add_module(name, layer)
    path = make_folder("head") / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(head.state_dict(), path)
    with torch.no_grad():
        theirs = head["layers"](embeddings)[:, 0].numpy()
    found = Aesthetic.load(str(path), clip=str(clip_l_folder)).score(pictures, PROMPTS, device_batch=1)
    report("Aesthetic, largest difference", np.abs(found - theirs).max())
    np.testing.assert_allclose(found, theirs, atol=1e-3)
    assert np.ptp(theirs) > 0.03
