import numpy as np
import pytest

from hgdpo_jax.data.unusable import Unusable, image_of
from hgdpo_jax.errors import UserError


def count(bad, batch, limit, total):
    """Counts batches, of which `bad` images each are unusable; returns the message that ends this, or ""."""
    unusable = Unusable(limit, total)
    try:
        for index, number in enumerate(bad):
            unusable.add({"the latents": np.arange(batch) >= number}, image_of(["a man"] * batch, index))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("bad", "batch", "total"),
    [
        ([1], 1, 1),
        ([1, 0, 1, 1], 2, 8),
        # A prompt that no image can be drawn of, at the start of a pool, in blocks of 64 prompts and of one.
        ([1] * 20, 64, 2_000_000),
        ([1] * 20, 1, 2_000_000),
        ([0, 64, 0], 64, 2_000_000),
    ],
)
def test_few_unusable_images_do_not_stop_a_stage(bad, batch, total):
    assert not count(bad, batch, 0.01, total)


@pytest.mark.parametrize(
    ("bad", "batch", "limit", "total", "counted"),
    [
        ([4], 4, 0.01, 8, "4 of 4 images"),
        ([0, 11], 50, 0.1, 100, "11 of 100 images"),
        # Not after a hundredth of the pool: by then hours are lost.
        ([64, 64, 64], 64, 0.01, 2_000_000, "128 of 128 images"),
    ],
)
def test_many_unusable_images_stop_a_stage_with_the_first_of_them(bad, batch, limit, total, counted):
    message = count(bad, batch, limit, total)
    if total == 100:
        assert not count([0, 10], batch, limit, total)
    assert message.startswith(f"{counted} are unusable, first image {int(not bad[0])} of prompt 'a man': the latents")
    assert f"--config.pool.unusable_limit, now {limit:g}" in message


def test_a_limit_above_a_half_holds_for_the_first_images_too():
    # Of a scorer that gives no score to pictures without a face, say.
    assert not count([48] * 10, 64, 0.9, 2_000_000)
    assert count([60] * 10, 64, 0.9, 2_000_000).startswith("120 of 128 images are unusable")


def test_the_message_names_what_failed_first_in_the_first_unusable_image():
    unusable = Unusable(1.0, 3)
    finite = {"the latents": [True, True, False], "the pictures": [True, False, False], "the scores": [True] * 3}
    unusable.add({what: np.array(rows) for what, rows in finite.items()}, "abc".__getitem__)
    with pytest.raises(UserError, match="2 of 3 images are unusable, first b: the pictures are not finite"):
        unusable.require_rest(0)
