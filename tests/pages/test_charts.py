import re

from hgdpo_jax.pages import charts


def log_of(steps):
    return [
        {"step": step, "loss": 0.7 - step / 1000, "dpo_loss": 0.69 - step / 1000, "policy_winner_error": 0.1}
        for step in range(1, steps + 1)
    ]


def test_only_charts_with_values_are_drawn():
    assert [chart.title for chart in charts.training_curves(log_of(3))] == ["DPO loss", "Noise prediction error"]
    assert charts.training_curves([]) == []
    assert charts.training_curves([{"step": 1, "margin": float("nan")}]) == []


def test_inlined_chart_has_no_identifiers_to_clash_no_address_and_no_fixed_colour():
    for curves in charts.training_curves(log_of(30)):
        markup = charts.curves_svg(curves, "salt")
        assert markup == charts.curves_svg(curves, "salt")
        assert "http" not in markup and "#0f766e" not in markup and "var(--series-1)" in markup
        assert '<g id="' not in markup


def test_curves_are_the_same_bytes_each_time_whatever_the_number_of_steps():
    for steps in (1, 2, 60):
        one, other = (charts.curves_figure(charts.training_curves(log_of(steps))) for _ in range(2))
        assert one == other


def test_inlined_curves_are_the_same_bytes_each_time_and_have_identifiers_of_their_own():
    series = [charts.Series(f"score {index}", [0, 1, 2], [0.5, 0.6, 0.4], [0.4] * 3, [0.7] * 3) for index in range(5)]
    curves = charts.Curves("Win rate", "", "weight", series, level=0.5, percent=True)
    one, other = charts.curves_svg(curves, "one"), charts.curves_svg(curves, "other")
    assert one == charts.curves_svg(curves, "one") and "http" not in one
    identifiers = [set(re.findall(r'id="([^"]+)"', markup)) for markup in (one, other)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]
    assert all(f"var(--series-{index})" in one for index in (1, 2, 3, 4)) and "60 %" in one


def test_a_logarithmic_axis_names_the_places_of_the_points():
    series = charts.Series("judge", [2000, 50000, 100000], [0.7, 0.8, 0.9])
    markup = charts.curves_svg(charts.Curves("Win rate", "", "prompts", [series], log_x=True), "salt")
    assert all(f">{place}<" in markup for place in ("2,000", "50,000", "100,000"))


def test_ranks_are_counted_in_whole_numbers():
    series = charts.Series("means", list(range(2, 21)), [0.1] * 19)
    markup = charts.curves_svg(charts.Curves("Distance", "", "rank", [series]), "salt")
    assert ">20<" in markup and ">2.5<" not in markup


def test_a_loss_that_coincides_with_its_main_term_is_drawn_inside_a_wider_line():
    line = [{"step": step, "loss": 0.7, "dpo_loss": 0.7} for step in range(9)]
    markup = charts.curves_svg(charts.training_curves(line)[0], "salt")
    widths = [float(width) for width in re.findall(r"stroke: var\(--series-[12]\);.*? stroke-width: ([\d.]+)", markup)]
    assert {5.0, 1.6} <= {*widths}


def test_every_training_chart_marks_the_exported_step_and_has_a_name():
    for plain, marked in zip(charts.training_curves(log_of(9)), charts.training_curves(log_of(9), 4), strict=True):
        one, other = (charts.curves_svg(curves, "salt") for curves in (plain, marked))
        assert one != other and f'role="img" aria-label="Chart: {plain.title}"' in other
