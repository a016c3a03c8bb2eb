import numpy as np
import pytest

from hgdpo_jax.evaluation.win_rate import per_image_win_rate, wilson_interval, win_rate


def test_wilson_interval_has_the_published_values():
    # Newcombe (1998), Table I: 81 of 263 gives 0.2553 to 0.3662; 15 of 148 gives 0.0624 to 0.1605.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_wilson_interval_of_all_or_nothing_stays_within_zero_and_one():
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1.0, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_seeds_are_averaged_within_the_prompt():
    # A wins two of three seeds of the first prompt, yet loses it in the mean.
    scores_a = np.array([[1.0, 1.0, 0.0], [5.0, 5.0, 5.0]])
    scores_b = np.array([[0.9, 0.9, 9.0], [4.0, 4.0, 4.0]])
    result = win_rate(scores_a, scores_b)
    assert (result.rate, result.wins, result.ties, result.losses, result.prompts) == (0.5, 1, 0, 1, 2)
    assert per_image_win_rate(scores_a, scores_b) == pytest.approx(5 / 6)


def test_ties_count_half():
    scores_a, scores_b = np.array([[3.0], [2.0], [1.0], [4.0]]), np.array([[3.0], [2.0], [0.0], [5.0]])
    result = win_rate(scores_a, scores_b)
    assert (result.rate, result.wins, result.ties, result.losses) == (0.5, 1, 2, 1)


def test_the_order_of_the_seeds_makes_no_difference_to_a_tie():
    shares = np.float32([[1 / 6, 5 / 6, 1 / 3, 2 / 3]])
    assert win_rate(shares, shares[:, ::-1]).ties == 1


def test_equal_scores_give_one_half_with_an_interval_around_it():
    scores = np.arange(12.0).reshape(6, 2)
    result = win_rate(scores, scores)
    assert result.rate == 0.5 and result.low < 0.5 < result.high and result.ties == 6


def test_swapping_the_sides_mirrors_the_result():
    generator = np.random.default_rng(0)
    scores_a, scores_b = generator.normal(size=(2, 40, 3))
    forward, backward = win_rate(scores_a, scores_b), win_rate(scores_b, scores_a)
    assert (forward.rate, forward.low, forward.high) == pytest.approx(
        (1 - backward.rate, 1 - backward.high, 1 - backward.low)
    )


@pytest.mark.parametrize(
    ("scores_a", "scores_b"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2))),
        (np.zeros(3), np.zeros(3)),
        (np.zeros((0, 2)), np.zeros((0, 2))),
        (np.full((2, 1), np.inf), np.zeros((2, 1))),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores_a, scores_b):
    with pytest.raises(ValueError, match="scores"):
        win_rate(scores_a, scores_b)


def test_sign_test_leaves_ties_out_and_is_exact():
    # 6 wins of 7 decided prompts: 2 * (7 + 1) / 2^7.
    wins, ties = np.array([[1.0]] * 6 + [[0.0]] * 5), np.array([[0.0]] * 6 + [[0.0]] * 4 + [[1.0]])
    result = win_rate(wins, ties)
    assert (result.wins, result.ties, result.losses) == (6, 4, 1)
    assert result.p_value == pytest.approx(16 / 128)
    assert win_rate(ties, wins).p_value == pytest.approx(16 / 128)
    assert win_rate(np.ones((5, 1)), np.zeros((5, 1))).p_value == pytest.approx(2 / 32)


def test_sign_test_of_ties_alone_shows_nothing():
    assert win_rate(np.ones((5, 1)), np.ones((5, 1))).p_value == 1.0
