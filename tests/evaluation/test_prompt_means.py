"""The t distribution on means worked out by hand."""

import math

import numpy as np
import pytest

from hgdpo_jax.evaluation.prompt_means import mean_of_images, paired_difference


def column(*values):
    return np.array(values, float)[:, None]


def test_interval_and_p_value_are_those_of_the_paired_t():
    # Differences 1, 2, 3, 6: mean 3, deviation sqrt(14 / 3), standard error sqrt(7 / 6); t of 3 degrees at 97.5 %.
    found = paired_difference(column(1, 2, 3, 6), column(0, 0, 0, 0))
    error = math.sqrt(7 / 6)
    assert (found.mean, found.prompts) == (3.0, 4)
    assert (found.low, found.high) == pytest.approx((3 - 3.1824463 * error, 3 + 3.1824463 * error))
    # With 3 degrees of freedom the distribution has a closed form.
    t = 3 / error
    tail = 0.5 - (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (t**2 + 3)) / math.pi
    assert found.p_value == pytest.approx(2 * tail)


def test_seeds_are_averaged_within_the_prompt():
    found = paired_difference(np.array([[0.0, 2.0], [3.0, 5.0], [2.0, 2.0]]), np.zeros((3, 1)))
    assert found == paired_difference(column(1, 4, 2), column(0, 0, 0))


def test_what_all_prompts_share_is_no_difference():
    offsets = column(10, 20, 30)
    assert paired_difference(column(1, 2, 6) + offsets, offsets).mean == pytest.approx(3.0)


def test_swapping_the_sides_mirrors_the_result():
    scores_a, scores_b = np.random.default_rng(0).normal(size=(2, 40, 3))
    forward, backward = paired_difference(scores_a, scores_b), paired_difference(scores_b, scores_a)
    assert (forward.mean, forward.low, forward.high) == pytest.approx((-backward.mean, -backward.high, -backward.low))
    assert forward.p_value == pytest.approx(backward.p_value)


def test_one_prompt_decides_nothing_and_equal_differences_decide_all():
    one = paired_difference(column(5), column(1))
    assert (one.mean, one.low, one.high, one.p_value) == (4.0, -math.inf, math.inf, 1.0)
    equal = paired_difference(column(2, 3, 4), column(1, 2, 3))
    assert (equal.mean, equal.low, equal.high, equal.p_value) == (1.0, 1.0, 1.0, 0.0)
    same = paired_difference(column(2, 3), column(2, 3))
    assert (same.low, same.high, same.p_value) == (0.0, 0.0, 1.0)


def test_intervals_cover_the_truth_in_95_of_100_samples():
    generator = np.random.default_rng(0)
    found = [paired_difference(generator.normal(0.3, 1, (12, 1)), np.zeros((12, 1))) for _ in range(2000)]
    assert np.mean([each.low <= 0.3 <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)


def test_a_mean_is_over_prompts_and_leaves_out_unusable_images():
    values = np.array([[1.0, 2.0], [4.0, np.nan], [np.nan, np.nan]])
    found = mean_of_images(values, share=False)
    # Prompts of 1.5 and 4: t of one degree at 97.5 %, standard error 1.25.
    assert (found.mean, found.prompts) == (2.75, 2)
    assert found.high == pytest.approx(2.75 + 12.7062047 * 1.25)


def test_a_share_has_an_interval_within_0_and_1():
    none, all_of_them = (mean_of_images(np.full((20, 2), value), share=True) for value in (0.0, 1.0))
    assert (none.mean, none.low, all_of_them.mean, all_of_them.high) == (0.0, 0.0, 1.0, 1.0)
    # Wilson: z^2 / (n + z^2), of the prompts and not of the images.
    assert none.high == pytest.approx(0.1611252) == 1 - all_of_them.low
