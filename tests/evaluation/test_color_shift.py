import dataclasses
import math

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv as matplotlib_rgb_to_hsv

from hgdpo_jax.evaluation import color_shift as color_shift_module
from hgdpo_jax.evaluation.color_shift import hsv_means, hsv_of_images, means_of, rgb_to_hsv, shift_between


def plain(*color):
    """One image of 4x4 pixels of one colour, uint8 [1, 4, 4, 3]."""
    return np.broadcast_to(np.uint8(color), (1, 4, 4, 3))


def color_shift(base_images, tuned_images):
    return shift_between(hsv_means(base_images), hsv_means(tuned_images))


def random_images(seed, count=3):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 12, 3), dtype=np.uint8)


def test_hsv_agrees_with_matplotlib():
    levels = np.uint8([0, 1, 60, 127, 128, 200, 254, 255])
    pixels = np.concatenate([np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3), random_images(0)[0, 0]])
    expected = matplotlib_rgb_to_hsv(pixels / 255)
    np.testing.assert_allclose(np.stack(rgb_to_hsv(pixels), -1), expected, atol=1e-6)


def test_identical_images_have_no_shift():
    images = random_images(1)
    shift = color_shift(images, images.copy())
    assert (*shift.percent.values(), shift.hue_degrees) == (0, 0, 0, 0)


def test_identical_grey_images_have_no_shift_although_they_have_no_hue():
    shift = color_shift(plain(90, 90, 90), plain(90, 90, 90))
    assert (*shift.percent.values(), shift.hue_degrees) == (0, 0, 0, 0)


def test_darker_images_lose_value_in_per_cent_of_the_base():
    shift = color_shift(plain(200, 100, 100), plain(150, 75, 75))
    assert shift.percent["value"] == pytest.approx(-25)
    assert shift.percent["saturation"] == pytest.approx(0, abs=1e-4) and shift.percent["hue"] == 0


def test_hue_in_degrees_goes_the_short_way_round_where_the_per_cent_leaps():
    # Hues 356.9 and 3.1 degrees: two reds that look alike.
    shift = color_shift(plain(250, 50, 60), plain(250, 60, 50))
    assert shift.hue_degrees == pytest.approx(6.0, abs=0.2)
    assert shift.percent["hue"] < -90


def test_circular_mean_of_reds_on_both_sides_of_zero_is_red():
    reds = np.concatenate([plain(250, 50, 60), plain(250, 60, 50)])
    degrees = hsv_means(reds).hue_degrees
    assert min(degrees, 360 - degrees) == pytest.approx(0, abs=1e-3)


def test_pixels_without_saturation_count_as_hue_zero_in_the_arithmetic_mean_only():
    green, half_grey = plain(0, 200, 0), np.concatenate([plain(0, 200, 0), plain(200, 200, 200)])
    shift = color_shift(green, half_grey)
    assert shift.percent["hue"] == pytest.approx(-50)
    assert shift.hue_degrees == pytest.approx(0, abs=1e-4)


def test_change_from_zero_is_infinite():
    assert color_shift(plain(90, 90, 90), plain(90, 80, 80)).percent["saturation"] == math.inf


def test_chunks_do_not_change_the_means(monkeypatch):
    images = random_images(2)
    whole = hsv_means(images)
    monkeypatch.setattr(color_shift_module, "PIXELS_PER_CHUNK", 200)
    chunked = hsv_means(images)
    assert (chunked.hue, chunked.saturation, chunked.value) == pytest.approx((whole.hue, whole.saturation, whole.value))
    assert chunked.hue_degrees == pytest.approx(whole.hue_degrees, abs=1e-3)


def test_images_of_another_type_are_refused():
    with pytest.raises(ValueError, match="uint8 images"):
        hsv_means(random_images(3).astype(np.float32))


def test_means_of_chunks_are_the_means_of_the_whole():
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    rows = np.concatenate([hsv_of_images(images[:2]), hsv_of_images(images[2:])])
    assert dataclasses.astuple(means_of(rows)) == pytest.approx(dataclasses.astuple(hsv_means(images)))
