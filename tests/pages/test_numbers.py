import pytest

from hgdpo_jax.pages.numbers import format_score, ordinal, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [(float("nan"), "–"), (5.0, "5"), (21.25, "21.25"), (4.47, "4.470"), (-0.5, "−0.5000")],
)
def test_scores_are_written_in_four_digits(value, text):
    assert format_score(value) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.1234, None, "+0.123"), (-0.001, 2, "+0.00"), (-1.5, 1, "−1.5"), (float("inf"), 2, "–")],
)
def test_differences_are_written_with_their_sign(value, digits, text):
    assert signed(value, digits) == text


def test_ordinals_have_english_endings():
    assert [ordinal(number) for number in (1, 2, 3, 5, 11, 12, 20, 21, 112)] == (
        "1st 2nd 3rd 5th 11th 12th 20th 21st 112th".split()
    )
