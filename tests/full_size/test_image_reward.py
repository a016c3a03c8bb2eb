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
    prompts = ["a man", "a woman", "a man a woman"]
    coarse = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    # Float32; where a picture is resized, PIL rounds a grey level here and there the other way.
    for name, rows, columns, scale, limit in (("704x1024", 32, 22, 32, 5e-3), ("224x224", 28, 28, 8, 1e-4)):
        images = coarse[:, :rows, :columns].repeat(scale, axis=1).repeat(scale, axis=2)
        with torch.no_grad():
            theirs = reference(images, scorer.encode_prompts(prompts)).numpy()
        difference = np.abs(scorer.score(images, prompts) - theirs).max() / theirs.std()
        report(f"ImageReward, {name}, of the rewards' standard deviation", difference)
        assert difference < limit, name
