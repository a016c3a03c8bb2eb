import os

import numpy as np
import pytest

from hgdpo_jax.data.batches import ShuffledBatches
from hgdpo_jax.data.encoded_images import ROWS_PER_FILE, EncodedImages

IMAGES = ROWS_PER_FILE + 3


def arrays(rows):
    """Moments and text states that say of which row they are."""
    numbers = np.array(rows, np.float32)
    return numbers[:, None, None, None] + np.zeros((1, 2, 3, 8)), -numbers[:, None, None] + np.zeros((1, 4, 5))


@pytest.fixture
def encoded(tmp_path):
    images = EncodedImages(tmp_path, IMAGES)
    for rows in images.missing():
        images.write(rows, *arrays(rows))
    return images


def test_rows_come_back_as_they_were_given(encoded):
    assert len(encoded) == IMAGES
    for row in (0, ROWS_PER_FILE - 1, ROWS_PER_FILE, IMAGES - 1):
        moments, states = arrays([row])
        assert encoded[row]["moments"].dtype == encoded[row]["conditioning"].dtype == np.float16
        np.testing.assert_array_equal(encoded[row]["moments"], moments[0])
        np.testing.assert_array_equal(encoded[row]["conditioning"], states[0])


def test_missing_are_the_rows_of_files_that_are_not_there(encoded, tmp_path):
    assert EncodedImages(tmp_path / "empty", IMAGES).missing() == [range(ROWS_PER_FILE), range(ROWS_PER_FILE, IMAGES)]
    assert encoded.missing() == []
    (tmp_path / "000000.safetensors").unlink()
    assert encoded.missing() == [range(ROWS_PER_FILE)]


def test_every_epoch_holds_each_row_once_and_a_batch_is_a_function_of_the_step(encoded):
    batches, again = ShuffledBatches(encoded, 10, seed=3), ShuffledBatches(encoded, 10, seed=3)
    rows = [batches[step]["moments"][:, 0, 0, 0].astype(int) for step in range(2 * IMAGES // 10)]
    assert batches[0]["moments"].shape == (10, 2, 3, 8) and batches[0]["conditioning"].shape == (10, 4, 5)
    assert sorted(np.concatenate(rows)[:IMAGES]) == list(range(IMAGES))
    np.testing.assert_array_equal(again[17]["conditioning"], batches[17]["conditioning"])


def test_a_row_with_a_value_that_half_precision_does_not_hold_is_noted_and_left_out(tmp_path):
    images = EncodedImages(tmp_path, IMAGES)
    for rows in images.missing():
        moments, states = arrays(rows)
        states[1, 2, 3], moments[2, 1, 1, 1] = 1e6, np.nan
        images.write(rows, moments, states)
    assert images.unusable() == [1, 2, ROWS_PER_FILE + 1, ROWS_PER_FILE + 2]
    usable = EncodedImages(tmp_path, IMAGES, images.unusable())
    assert len(usable) == IMAGES - 4
    numbers = [usable[number]["moments"][0, 0, 0] for number in range(len(usable))]
    assert numbers == [row for row in range(IMAGES) if row not in images.unusable()]
    assert usable.missing() == []


def free_descriptor():
    """The second number that is free, which grows with the files that are held open; opening to map frees the first."""
    descriptors = [os.dup(0) for _ in range(2)]
    for descriptor in descriptors:
        os.close(descriptor)
    return descriptors[1]


def test_the_files_held_open_do_not_grow_with_the_data_set(tmp_path):
    files = 100
    images = EncodedImages(tmp_path, files * ROWS_PER_FILE)
    for rows in images.missing():
        images.write(rows, np.zeros((len(rows), 1, 1, 2)), np.zeros((len(rows), 1, 1)))
    before = free_descriptor()
    for start in range(0, len(images), ROWS_PER_FILE):
        images[start]
    assert free_descriptor() - before < files - 20
