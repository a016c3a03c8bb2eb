import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.scorers.image_reward import ImageReward
from hgdpo_jax.scorers.sources import ScorerSource

PROMPTS = ["a man with a beard", "a woman", "a portrait of an old man with a dog " * 9]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Folder of a BERT tokenizer of few words."""
    folder = tmp_path_factory.mktemp("bert")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a man with beard woman portrait of an old dog ##s".split()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture(scope="module")
def reference():
    torch = pytest.importorskip("torch")
    from image_reward_reference import ImageRewardReference

    torch.manual_seed(0)
    return ImageRewardReference(vision=128, text=64, vocabulary=18, vision_layers=2, layers=2, size=64)


@pytest.fixture(scope="module")
def checkpoint(reference, tmp_path_factory):
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("image_reward") / "ImageReward.pt"
    # transformers 4, with which it was published, stores the positions' numbers.
    numbers = {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({**reference.state_dict(), **numbers}, path)
    return path


def portraits(height, width, count=3):
    """Smooth pictures, noise among them."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, height // 32 + 1, width // 32 + 1, 3), np.uint8)
    pictures = coarse.repeat(32, axis=1).repeat(32, axis=2)[:, :height, :width].copy()
    pictures[-1] = random.integers(0, 256, pictures[-1].shape, np.uint8)
    return pictures


# Where a picture is resized, PIL rounds a grey level here and there the other way. Of the first two, half of what is
# cropped off is no whole number of pixels.
@pytest.mark.parametrize(
    ("height", "width", "limit"), [(151, 97, 5e-3), (97, 151, 5e-3), (160, 96, 5e-3), (96, 160, 5e-3), (64, 64, 5e-5)]
)
def test_rewards_are_those_of_the_reference(checkpoint, reference, vocabulary, height, width, limit):
    import torch

    scorer = ImageReward.load(str(checkpoint), tokenizer=str(vocabulary))
    images = portraits(height, width)
    with torch.no_grad():
        theirs = reference(images, scorer.encode_prompts(PROMPTS)).numpy()
    np.testing.assert_allclose(scorer.score(images, PROMPTS), theirs, rtol=0, atol=limit * theirs.std())


def test_in_bfloat16_rewards_are_near_those_in_float32_and_leave_in_float32(checkpoint, vocabulary):
    images, source = portraits(160, 96), str(checkpoint)
    full = ImageReward.load(source, tokenizer=str(vocabulary)).score(images, PROMPTS)
    found = ImageReward.load(source, "bfloat16", tokenizer=str(vocabulary)).score(images, PROMPTS)
    # Eight bits: 2e-3 a rounding, of which a state meets dozens.
    np.testing.assert_allclose(found, full, rtol=0, atol=0.1 * full.std())
    assert found.dtype == np.float32


def test_a_prompt_is_cut_and_padded_to_thirty_five_tokens_between_its_marks(checkpoint, vocabulary):
    short, _, long = ImageReward.load(str(checkpoint), tokenizer=str(vocabulary)).encode_prompts(PROMPTS)
    assert short.tolist() == [2, 5, 6, 7, 5, 8, 3] + [0] * 28
    assert len(long) == 35 and long[-1] == 3


def test_padding_changes_nothing(checkpoint, vocabulary):
    import jax.numpy as jnp

    scorer = ImageReward.load(str(checkpoint), tokenizer=str(vocabulary))
    images, ids = jnp.asarray(portraits(96, 64, 1)), scorer.encode_prompts(["a man"])
    alone = scorer.score_pixels(scorer.parameters, images, jnp.asarray(ids[:, :4]))
    padded = scorer.score_pixels(scorer.parameters, images, jnp.asarray(ids))
    np.testing.assert_allclose(alone, padded, rtol=1e-5, atol=1e-6)


def test_a_config_names_it(checkpoint, vocabulary):
    source = ScorerSource.parse(f"image_reward:{checkpoint},tokenizer={vocabulary}")
    assert (source.name, source.label) == ("image_reward", "ImageReward")
    images = portraits(96, 64)
    ours = ImageReward.load(str(checkpoint), tokenizer=str(vocabulary)).score(images, PROMPTS)
    np.testing.assert_array_equal(source.load().score(images, PROMPTS), ours)


def test_other_files_are_refused_by_what_they_lack(tmp_path, vocabulary, checkpoint, reference):
    import torch

    torch.save({"model.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="expected the file ImageReward.pt"):
        ImageReward.load(str(tmp_path / "other.pt"), tokenizer=str(vocabulary))
    tensors = {name: array for name, array in reference.state_dict().items() if name != "mlp.layers.7.bias"}
    torch.save(tensors, tmp_path / "cut.pt")
    with pytest.raises(UserError, match=r"lacks mlp\.layers\.7\.bias"):
        ImageReward.load(str(tmp_path / "cut.pt"), tokenizer=str(vocabulary))
    with pytest.raises(UserError, match=r"holds no vocab\.txt"):
        ImageReward.load(str(checkpoint), tokenizer=str(tmp_path))
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(UserError, match=r"begins with another word than \[PAD\]"):
        ImageReward.load(str(checkpoint), tokenizer=str(tmp_path))
