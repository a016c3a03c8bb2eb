"""ImageReward at its published width and depth."""

import numpy as np
import pytest

from hgdpo_jax.scorers.image_reward import ImageReward

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


def test_image_reward_of_a_portrait_is_the_references(tmp_path, report):
    from image_reward_reference import ImageRewardReference

    torch.manual_seed(0)
    reference = ImageRewardReference(vision=1024, text=768, vocabulary=30524, vision_layers=24, layers=12)
    torch.save(reference.state_dict(), tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nman\nwoman\n")
    scorer = ImageReward.load(str(tmp_path / "ImageReward.pt"), tokenizer=str(tmp_path))
    coarse = np.random.default_rng(0).integers(0, 256, (2, 32, 22, 3), np.uint8)
    images, prompts = coarse.repeat(32, axis=1).repeat(32, axis=2), ["a man", "a woman"]
    with torch.no_grad():
        theirs = reference(images, scorer.encode_prompts(prompts)).numpy()
    difference = np.abs(scorer.score(images, prompts) - theirs).max() / np.abs(theirs).max()
    report("ImageReward, 704x1024, relative", difference)
    # Float32, and grey levels that PIL rounds the other way.
    assert difference < 1e-3
