import numpy as np
import pytest

from hgdpo_jax import HPSv2
from hgdpo_jax.errors import UserError
from hgdpo_jax.scorers.sources import ScorerSource

torch = pytest.importorskip("torch")

PROMPTS = ["a man with a beard", "a woman"]
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
SPREAD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SIZES = {"image_width": 160, "text_width": 128, "layers": 2, "size": 56, "vocabulary": 600, "projection": 32}


def pictures(height, width):
    """A smooth picture, and one of noise."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows[..., None] / [9, 20, 31] + columns[..., None] / [13, 8, 40])
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return np.stack([127.5 + 127.5 * np.tanh(2 * waves), noise]).astype(np.uint8)


def reference_pixels(images, size):
    """Tensors go through torchvision's resizing as floats in [0, 1], and black comes around them."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    scale = size / max(x.shape[2:])
    rows, columns = (round(length * scale) for length in x.shape[2:])
    x = torch.nn.functional.interpolate(x, (rows, columns), mode="bicubic", antialias=True)
    below, right = size - rows, size - columns
    x = torch.nn.functional.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))
    return (x - torch.from_numpy(MEAN)[:, None, None]) / torch.from_numpy(SPREAD)[:, None, None]


@pytest.fixture(scope="module")
def model(make_open_clip):
    return make_open_clip(**SIZES)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("hps") / "HPS_v2.pt"
    # Older versions of open_clip store the mask.
    torch.save({"epoch": 3, "state_dict": {**model.state_dict(), "attn_mask": torch.zeros(77, 77)}}, path)
    return path


@pytest.fixture(scope="module")
def scorer(checkpoint, toon_tokenizer):
    return ScorerSource.parse(f"hps_v2:{checkpoint},tokenizer={toon_tokenizer}").load()


@pytest.mark.parametrize(("height", "width"), [(96, 66), (50, 71)])
def test_scores_equal_open_clip_with_the_references_pixels(model, scorer, toon_tokenizer, height, width):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(toon_tokenizer)
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    # open_clip pads with zeros: what follows the end token does not count.
    behind_end = torch.arange(77) > tokens.argmax(dim=-1, keepdim=True)
    images = pictures(height, width)
    with torch.no_grad():
        embeddings = model.visual(reference_pixels(images, 56))
        theirs = (embeddings * model(tokens.masked_fill(behind_end, 0))).sum(dim=-1).numpy()
    # Two implementations of the same filter and towers in float32.
    np.testing.assert_allclose(scorer.score(images, PROMPTS), theirs, atol=1e-5)
    np.testing.assert_allclose(scorer.embed_images(images), embeddings, atol=1e-5)
    assert behind_end.any() and np.ptp(theirs) > 0.01


@pytest.mark.parametrize(("height", "width"), [(1024, 704), (704, 1024), (512, 512), (301, 203), (40, 31)])
def test_pixels_are_those_of_the_reference_even_of_noise(scorer, height, width):
    images = pictures(height, width)
    found = scorer.preprocess(images)
    levels = 255 * SPREAD * np.abs(found - reference_pixels(images, 56).permute(0, 2, 3, 1).numpy())
    assert levels.max() < 0.01


def test_framing_changes_nothing(scorer, checkpoint, toon_tokenizer):
    images = pictures(96, 66)
    padded = HPSv2.load(str(checkpoint), framing="pad", tokenizer=str(toon_tokenizer))
    np.testing.assert_array_equal(scorer.preprocess(images), padded.preprocess(images))
    with pytest.raises(UserError, match="framing"):
        HPSv2.load(str(checkpoint), framing="stretch", tokenizer=str(toon_tokenizer))


def changed(name, tensor):
    def change(tensors):
        return {key: value for key, value in {**tensors, name: tensor}.items() if value is not None}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: {"first_stage_model.x": torch.zeros(1)}, "has no visual.conv1.weight: expected a file of HPSv2"),
        (changed("visual.ln_post.bias", None), "lacks vision_model.post_layernorm.bias"),
        (changed("score_predictor.weight", torch.zeros(1)), "has score_predictor.weight, which the model"),
        (changed("text_projection", torch.zeros(64, 32)), r"text_projection.weight of shape \[32, 64\], expected"),
        (changed("visual.transformer.resblocks.0.mlp.c_fc.weight", torch.zeros(4096, 1024)), "of width 1024, expected"),
        (changed("transformer.resblocks.0.attn.in_proj_bias", torch.zeros(100)), "k_proj.bias of shape"),
    ],
)
def test_another_file_is_refused_in_one_line(model, toon_tokenizer, tmp_path, change, words):
    torch.save(change(model.state_dict()), tmp_path / "other.pt")
    with pytest.raises(UserError, match=words) as error:
        HPSv2.load(str(tmp_path / "other.pt"), tokenizer=str(toon_tokenizer))
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_is_refused(tiny_scorer, toon_tokenizer):
    with pytest.raises(UserError, match="is no file of weights, expected"):
        HPSv2.load(str(tiny_scorer), tokenizer=str(toon_tokenizer))
