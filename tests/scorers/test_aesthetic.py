import numpy as np
import pytest

from hgdpo_jax import Aesthetic
from hgdpo_jax.errors import UserError
from hgdpo_jax.scorers.sources import ScorerSource

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def images():
    coarse = np.random.default_rng(0).integers(0, 256, size=(3, 8, 6, 3)).astype(np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


def make_head(width):
    """The predictor's layers as they were trained, with the dropouts that give the published names their numbers."""
    torch.manual_seed(0)
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    layers = [linear(width, 1024), dropout(0.2), linear(1024, 128), dropout(0.2), linear(128, 64), dropout(0.1)]
    head = torch.nn.ModuleDict({"layers": torch.nn.Sequential(*layers, linear(64, 16), linear(16, 1))}).eval()
    # As PyTorch initialises them, what tells images apart vanishes.
    return head.apply(lambda layer: layer.weight.data.mul_(3**0.5) if isinstance(layer, linear) else None)


@pytest.fixture
def head(tmp_path):
    path = tmp_path / "sac+logos.pth"
    torch.save(make_head(16).state_dict(), path)
    return path


def test_scores_equal_the_reference_on_transformers(head, tiny_scorer, images):
    model = transformers.CLIPModel.from_pretrained(tiny_scorer).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tiny_scorer)
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack(processor(list(images))["pixel_values"]))
        embeddings = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        theirs = make_head(16)["layers"](torch.nn.functional.normalize(embeddings, dim=-1))[:, 0].numpy()
    scorer = ScorerSource.parse(f"aesthetic:{head},clip={tiny_scorer}").load()
    found = scorer.score(images, ["a man", "a woman", "another prompt"])
    # Grey levels that the two bicubic filters round differently, as in PickScore's test.
    np.testing.assert_allclose(found, theirs, rtol=1e-3, atol=1e-3)
    assert np.ptp(theirs) > 0.01
    assert scorer.embed_images(images).shape == (3, 16)


def test_prompts_do_not_count(head, tiny_scorer, images):
    scorer = Aesthetic.load(str(head), clip=str(tiny_scorer))
    assert scorer.encode_prompts(["a", "b"]).shape == (2, 0)
    np.testing.assert_array_equal(scorer.score(images, ["a"] * 3), scorer.score(images, ["b", "c", "d"]))


def test_its_fingerprint_follows_head_and_clip(head, tiny_scorer, tiny_judge, tmp_path):
    torch.save({name: tensor + 1 for name, tensor in make_head(16).state_dict().items()}, tmp_path / "other.pth")
    texts = [f"{head},clip={tiny_scorer}", f"{head},clip={tiny_judge}", f"{tmp_path}/other.pth,clip={tiny_scorer}"]
    assert len({ScorerSource.parse(f"aesthetic:{text}").fingerprint() for text in texts}) == 3


def test_a_head_of_another_width_is_refused(tiny_scorer, tmp_path):
    torch.save(make_head(32).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"wide.pth has layers.0.weight of shape \[1024, 32\], expected \[1024, 16\]"):
        Aesthetic.load(str(tmp_path / "wide.pth"), clip=str(tiny_scorer))


def test_a_clip_in_place_of_the_head_is_refused_in_one_line(tiny_scorer):
    with pytest.raises(UserError, match="model.safetensors lacks layers.0.bias") as error:
        Aesthetic.load(f"{tiny_scorer}/model.safetensors", clip=str(tiny_scorer))
    assert len(str(error.value).splitlines()) == 1
