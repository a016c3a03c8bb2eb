import base64
import io

import numpy as np
import pytest
from PIL import Image

from hgdpo_jax.pages import pictures
from hgdpo_jax.pages.pictures import ImagePair


def picture(height=64, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(64, 48, (192, 256)), (1024, 704, (176, 256)), (100, 100, (200, 200))]
)
def test_small_pictures_grow_by_a_whole_factor_and_large_ones_shrink_to_the_height(height, width, expected):
    assert pictures.resize_for_display(picture(height, width), 256).size == expected


def test_data_uri_holds_the_picture():
    flat = np.full((64, 48, 3), (200, 120, 40), np.uint8)
    head, data = pictures.data_uri(flat, 128).split(",")
    decoded = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert head == "data:image/webp;base64" and decoded.size == (96, 128)
    np.testing.assert_allclose(np.asarray(decoded), np.broadcast_to((200, 120, 40), (128, 96, 3)), atol=4)


def test_grid_has_a_column_for_every_pair_and_is_the_same_each_time():
    pairs = [
        ImagePair(
            "a man with a very long description " * 9, [picture(), picture(seed=1)], [{"judge": 1.5}, {"judge": 2.0}]
        ),
        ImagePair("x", [picture(), picture(seed=2)]),
    ]
    one, two = (Image.open(io.BytesIO(pictures.pair_grid(pairs[:n], ("Base", "Tuned"), "judge"))) for n in (1, 2))
    assert two.width - one.width == 144 + 12 and two.height == one.height
    assert pictures.pair_grid(pairs, ("Base", "Tuned"), "judge") == pictures.pair_grid(
        pairs, ("Base", "Tuned"), "judge"
    )


def test_more_than_eight_pairs_stand_in_bands():
    pairs = [ImagePair("a man", [picture(), picture(seed=1)])] * 9
    one, two = (Image.open(io.BytesIO(pictures.pair_grid(pairs[:n], ("Base", "Tuned"), ""))) for n in (8, 9))
    assert two.width == one.width and two.height == 2 * one.height


def test_a_grid_shows_its_labels_whole():
    pair = ImagePair("a man", [np.full((64, 48, 3), 255, np.uint8)] * 2)
    widths = [
        Image.open(io.BytesIO(pictures.pair_grid([pair], ("base", label), "judge"))).width
        for label in ("base", "LoRA at 0.5", "a LoRA of another name at 0.25, LAN")
    ]
    # White pictures: all ink left of the prompt's column is that of the labels.
    grid = np.asarray(Image.open(io.BytesIO(pictures.pair_grid([pair], ("base", "LoRA at 0.5"), "judge"))).convert("L"))
    inked = np.flatnonzero((grid[:220] < 128).any(axis=0))
    assert widths == sorted(set(widths)) and inked.max() < grid.shape[1] - 12 - 144
