import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from hgdpo_jax.evaluation import figures
from hgdpo_jax.evaluation.figures import ImagePair


def picture(height=64, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def log_of(steps):
    return [
        {"step": step, "loss": 0.7 - step / 1000, "dpo_loss": 0.69 - step / 1000, "policy_winner_error": 0.1}
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(64, 48, (192, 256)), (1024, 704, (176, 256)), (100, 100, (200, 200))]
)
def test_small_pictures_grow_by_a_whole_factor_and_large_ones_shrink_to_the_height(height, width, expected):
    assert figures.resize_for_display(picture(height, width), 256).size == expected


def test_data_uri_holds_the_picture():
    flat = np.full((64, 48, 3), (200, 120, 40), np.uint8)
    head, data = figures.data_uri(flat, 128).split(",")
    decoded = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert head == "data:image/webp;base64" and decoded.size == (96, 128)
    np.testing.assert_allclose(np.asarray(decoded), np.broadcast_to((200, 120, 40), (128, 96, 3)), atol=4)


def test_grid_has_a_column_for_every_pair_and_is_the_same_each_time():
    pairs = [
        ImagePair(
            "a man with a very long description " * 9, picture(), picture(seed=1), {"judge": 1.5}, {"judge": 2.0}
        ),
        ImagePair("x", picture(), picture(seed=2), {}, {}),
    ]
    one, two = (Image.open(io.BytesIO(figures.pair_grid(pairs[:n], "Base", "Tuned", "judge"))) for n in (1, 2))
    assert two.width - one.width == 144 + 12 and two.height == one.height
    assert figures.pair_grid(pairs, "Base", "Tuned", "judge") == figures.pair_grid(pairs, "Base", "Tuned", "judge")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (5.0, "5"), (21.25, "21.25"), (4.47, "4.470"), (-0.5, "−0.5000")],
)
def test_scores_are_written_in_four_digits(value, text):
    assert figures.format_score(value) == text


def test_only_charts_with_values_are_drawn():
    assert [chart.title for chart in figures.charts_with_data(log_of(3))] == ["DPO loss", "Noise prediction error"]
    assert figures.charts_with_data([]) == []
    assert figures.charts_with_data([{"step": 1, "margin": float("nan")}]) == []


def test_inlined_chart_has_no_identifiers_to_clash_no_address_and_no_fixed_colour():
    log = log_of(30)
    for chart in figures.charts_with_data(log):
        markup = figures.chart_svg(chart, log)
        assert markup == figures.chart_svg(chart, log)
        assert "http" not in markup and "#0f766e" not in markup and "var(--series-1)" in markup
        assert '<g id="' not in markup


def test_curves_are_the_same_bytes_each_time_whatever_the_number_of_steps():
    for steps in (1, 2, 60):
        assert figures.curves_figure(log_of(steps)) == figures.curves_figure(log_of(steps))


def test_inlined_curves_are_the_same_bytes_each_time_and_have_identifiers_of_their_own():
    series = [figures.Series(f"score {index}", [0, 1, 2], [0.5, 0.6, 0.4], [0.4] * 3, [0.7] * 3) for index in range(5)]
    curves = figures.Curves("Win rate", "", "weight", series, level=0.5, percent=True)
    one, other = figures.curves_svg(curves, "one"), figures.curves_svg(curves, "other")
    assert one == figures.curves_svg(curves, "one") and "http" not in one
    identifiers = [set(re.findall(r'id="([^"]+)"', markup)) for markup in (one, other)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]
    assert all(f"var(--series-{index})" in one for index in (1, 2, 3, 4)) and "60 %" in one


def test_a_logarithmic_axis_names_the_places_of_the_points():
    series = figures.Series("judge", [2000, 50000, 100000], [0.7, 0.8, 0.9])
    markup = figures.curves_svg(figures.Curves("Win rate", "", "prompts", [series], log_x=True), "salt")
    assert all(f">{place}<" in markup for place in ("2,000", "50,000", "100,000"))


def test_ranks_are_counted_in_whole_numbers():
    series = figures.Series("means", list(range(2, 21)), [0.1] * 19)
    markup = figures.curves_svg(figures.Curves("Distance", "", "rank", [series]), "salt")
    assert ">20<" in markup and ">2.5<" not in markup
