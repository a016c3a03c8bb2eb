"""Finding the largest batch that fits."""

import pytest

from hgdpo_jax.preflight.compilation import Measurement
from hgdpo_jax.preflight.largest_batch import largest_batch

USABLE = 1000


def search(peak, first, says=True):
    """The largest batch where so many rows take `peak(rows)` bytes, and the batches that were compiled."""
    tried = []

    def measure(batch):
        tried.append(batch)
        fits = peak(batch) <= USABLE
        return Measurement(fits, peak(batch) if fits or says else 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)

    return largest_batch(measure, first, measure(first), USABLE), tried


@pytest.mark.parametrize("first", [1, 2, 8, 17, 18, 19, 100])
def test_where_memory_grows_evenly_three_batches_tell_the_largest(first):
    found, tried = search(lambda batch: 100 + 50 * batch, first)
    assert found == 18
    assert len(tried) <= 3


def test_what_is_found_was_compiled_and_fits_where_memory_grows_unevenly():
    def peak(batch):
        return 100 + 40 * batch + batch**2

    found, tried = search(peak, 4)
    assert found in tried
    assert peak(found) <= USABLE
    assert peak(found + 2) > USABLE


def test_a_batch_of_one_that_does_not_fit_is_none_that_does():
    assert search(lambda batch: 2000 * batch, 4)[0] == 0


def test_no_batch_is_compiled_twice():
    _, tried = search(lambda batch: 130 + 37 * batch + batch**2 // 9, 5)
    assert len(tried) == len(set(tried))


def test_a_compiler_that_does_not_say_what_it_needs_leaves_what_is_known_to_fit():
    assert search(lambda batch: 100 + 50 * batch, 16, says=False)[0] == 16
