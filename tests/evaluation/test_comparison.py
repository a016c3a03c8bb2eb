import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.comparison import compare_scores
from hgdpo_jax.evaluation.measures import About
from hgdpo_jax.evaluation.win_rate import win_rate

JUDGE = About("pick_score", "Judge", "")


def test_comparison_holds_both_win_rates_and_both_means():
    comparison = compare_scores(np.array([[2.0, 4.0]]), np.array([[1.0, 5.0]]), JUDGE)
    assert comparison.win_rate.ties == 1 and comparison.per_image_win_rate == 0.5
    assert (comparison.base_mean, comparison.tuned_mean) == (3.0, 3.0)


def test_an_unusable_image_is_left_out_of_its_prompt_and_a_prompt_without_any_is_left_out():
    nan = np.nan
    scores_a = np.array([[1.0, nan, 3.0], [nan, nan, nan], [5.0, 5.0, 5.0], [1.0, 1.0, 1.0]])
    scores_b = np.array([[1.9, 9.0, nan], [0.0, 0.0, 0.0], [4.0, 4.0, nan], [nan, nan, 2.0]])
    comparison = compare_scores(scores_a, scores_b, JUDGE)
    rate = comparison.win_rate
    assert (rate.wins, rate.losses, rate.prompts) == (1, 2, 3)
    assert comparison.per_image_win_rate == 2 / 4
    assert comparison.tuned_mean == pytest.approx(22 / 8)
    with pytest.raises(UserError, match="no prompt has an image with a finite score from both models"):
        win_rate(scores_a[1:2], scores_b[1:2])
