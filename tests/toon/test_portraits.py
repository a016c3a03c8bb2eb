from dataclasses import replace

import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.toon import attributes, portraits
from hgdpo_jax.toon.portraits import portrait, render


def test_a_portrait_is_a_function_of_split_and_index():
    assert portrait(7, "train") == portrait(7, "train")
    assert portrait(7, "train") != portrait(8, "train")
    assert portrait(7, "train") != portrait(7, "test")


def test_rendering_is_deterministic():
    person = portrait(3, "train")
    np.testing.assert_array_equal(render(person), portraits.drawing(person).rasterize())


def test_pictures_are_48_wide_and_64_high():
    pictures = portraits.render_many([portrait(index, "train") for index in range(3)])
    assert pictures.shape == (3, portraits.HEIGHT, portraits.WIDTH, 3) == (3, 64, 48, 3)
    assert pictures.dtype == np.uint8


def test_rendering_no_portraits_gives_no_pictures():
    assert portraits.render_many([]).shape == (0, 64, 48, 3)


def test_rendering_in_processes_gives_the_same_pictures(monkeypatch):
    people = [portrait(index, "train") for index in range(4)]
    expected = portraits.render_many(people)
    monkeypatch.setattr(portraits, "_PICTURES_WORTH_PROCESSES", 1)
    np.testing.assert_array_equal(portraits.render_many(people), expected)


def test_splits_share_no_combination():
    seen = [set(portraits.combinations(split)) for split in portraits.SPLITS]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert len(set.union(*seen)) == 5 * 5 * 8 * 7


@pytest.mark.parametrize("split", portraits.SPLITS)
def test_portraits_come_from_the_combinations_of_their_split(split):
    assert all(portraits.split_of(portrait(index, split).combination) == split for index in range(300))


def test_every_class_of_every_attribute_occurs_in_every_split():
    for split in portraits.SPLITS:
        people = [portrait(index, split) for index in range(500)]
        for name, classes in attributes.ATTRIBUTES.items():
            assert {getattr(person, name) for person in people} == set(classes)


def test_labels_number_the_classes():
    person = portrait(11, "validation")
    for (name, classes), label in zip(attributes.ATTRIBUTES.items(), portraits.labels([person])[0], strict=True):
        assert classes[label] == getattr(person, name)


@pytest.mark.parametrize("name", [*attributes.ATTRIBUTES, "framing"])
def test_changing_one_attribute_changes_the_picture(name):
    person = portrait(0, "train")
    classes = tuple(attributes.FRAMING) if name == "framing" else attributes.ATTRIBUTES[name]
    pictures = {render(replace(person, **{name: value})).tobytes() for value in classes}
    assert len(pictures) == len(classes)


def test_the_background_fills_the_upper_corners():
    person = portrait(0, "train")
    color = attributes.DRAWN["background"][person.background].removeprefix("#")
    assert render(person)[0, 0].tolist() == list(bytes.fromhex(color))


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(UserError, match="toon:holdout, expected one of toon:train, toon:validation, toon:test"):
        portrait(0, "holdout")
