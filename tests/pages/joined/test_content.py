"""What the report says of runs whose outcome is known."""

import numpy as np
import pytest
from runs_on_disk import PROMPTS, make_results, make_sweep, rank_statistics, write_run

from hgdpo_jax.evaluation.rank_statistics import RankStatistics
from hgdpo_jax.evaluation.win_rate import wilson_interval
from hgdpo_jax.pages.joined.content import build
from hgdpo_jax.pages.joined.paper_figures import rank_verdict
from hgdpo_jax.pages.joined.runs import read_runs


def report(tmp_path, *results, sweeps=()):
    sweep_of = {sweep["experiment"]: sweep for sweep in sweeps}
    return build(read_runs([write_run(tmp_path / "runs", each, sweep_of.get(each["experiment"])) for each in results]))


def section(document, title):
    return next(section for section in document.sections if section.title.startswith(title))


def row(table, label):
    """The cells of a row by their column."""
    cells = next(cells for cells in table.rows if cells[0].text == label)
    return dict(zip(table.columns, cells, strict=True))


def with_scores(name, values, score="judge"):
    """A run whose tuned model has these scores [prompts, seeds] by one score."""
    results = make_results(name)
    results["models"]["tuned"]["scores"][score] = np.asarray(values, float).tolist()
    return results


def marks(document):
    """Verdicts by the claim."""
    return {
        cells[0].text: cell.mark
        for part in document.sections
        for table in part.tables
        for cells in table.rows
        for cell in cells
        if cell.mark
    }


def test_a_difference_on_the_claimed_side_holds_on_the_other_fails_and_around_zero_is_undecided(tmp_path):
    generator = np.random.default_rng(0)
    level = generator.normal(17, 3, (len(PROMPTS), 2))
    noise = generator.normal(0, 0.1, (4, len(PROMPTS), 2))
    noise -= noise.mean(axis=(1, 2), keepdims=True)
    found = report(
        tmp_path,
        with_scores("n2", level + noise[0]),
        with_scores("n5", level + 0.2 + noise[1]),
        with_scores("n10", level + 0.2 + noise[2]),
        with_scores("n20", level - 0.1 + noise[3]),
    )
    assert marks(found) == {
        "N-5 over N-2": "holds",
        "N-10 over N-5": "undecided",
        "N-20 over N-10": "fails",
        "N-20 over N-2": "fails",
    }
    assert found.claims == {"holds": 1, "fails": 2, "undecided": 1}
    assert "4 comparisons" in found.lead and "1 hold, 2 fail, 1 undecided" in found.lead
    claim = row(section(found, "Table 3").tables[1], "N-5 over N-2")
    difference, direct = claim["Difference, Held-out judge"].values, claim["Direct win rate"].values
    assert difference["mean"] == pytest.approx(0.2) and 0.1 < difference["low"] < 0.2 < difference["high"] < 0.3
    assert direct["rate"] > 0.8 and direct["p_value"] < 1e-4
    assert "Training scorer: undecided" in claim["Other scores"].detail


def test_the_mark_goes_by_the_mean_difference_and_the_win_rate_stands_beside_it(tmp_path):
    # Better by little on three prompts of four, worse by much on the fourth: the claim fails, most prompts are won.
    level = np.random.default_rng(0).normal(17, 1, (len(PROMPTS), 1)).repeat(2, axis=1)
    ahead = np.where(np.arange(len(PROMPTS)) % 4, 0.1, -2.0)[:, None]
    found = report(tmp_path, with_scores("n2", level), with_scores("n5", level + ahead))
    claim = row(section(found, "Table 3").tables[1], "N-5 over N-2")
    assert claim["At 95 %"].mark == "fails" and claim["Direct win rate"].text == "75.0\N{NO-BREAK SPACE}%"


def test_seeds_of_drawing_and_of_training_are_averaged_within_the_prompt(tmp_path):
    base = np.array(make_results("n20")["models"]["base"]["scores"]["judge"])
    # On half of the prompts one training seed wins by 3 and the other loses by 1, on the others both lose.
    half = (np.arange(len(PROMPTS)) < len(PROMPTS) // 2)[:, None]
    found = report(
        tmp_path,
        with_scores("n20-1", base + np.where(half, 3.0, -1.0)),
        with_scores("n20-2", base - 1.0),
        with_scores("n5", base + np.where(half, [[4.0, -2.0]], [[-4.0, 2.0]])),
    )
    table = section(found, "Table 3").tables[0]
    joined = row(table, "N-20")["Held-out judge"]
    assert joined.values["rate"] == 0.5 and joined.values["training_seeds"] == [0.5, 0.0]
    assert "2 seeds 0.0 to 50.0" in joined.detail
    assert row(table, "N-5")["Held-out judge"].values["rate"] == 0.5
    assert any("different numbers of training seeds" in note for note in found.notes)


def test_hg_dpo_is_compared_with_its_rivals_directly(tmp_path):
    level = np.array(make_results("x")["models"]["base"]["scores"]["judge"])
    better = np.where(np.arange(len(PROMPTS)) % 3, 1.0, -1.0)[:, None]
    found = report(
        tmp_path,
        with_scores("n20_sml", level + 5 + better),
        with_scores("sft_winners", level + 5),
        with_scores("n20_beta4x", level + 7),
    )
    table = section(found, "Table 1").tables[0]
    assert table.columns == ["HG-DPO over", "Training scorer", "Held-out judge", "paper, PickScore", "Attribute oracle"]
    rival = row(table, "SFT on the winners")
    assert rival["Held-out judge"].values["rate"] == pytest.approx(2 / 3)
    assert rival["paper, PickScore"].values == {"paper": 74.58}
    assert row(table, "N-20, beta x 4")["Held-out judge"].values["rate"] == 0.0
    assert marks(found)["N-20-SML (HG-DPO) over SFT on the winners"] == "holds"
    assert marks(found)["N-20-SML (HG-DPO) over N-20, beta x 4"] == "fails"
    assert section(found, "Table 1").notes == ["Not among the runs: N-20, beta x 20 (n20_beta20x)."]


def test_rivals_without_hg_dpo_and_single_rows_make_no_table(tmp_path):
    found = report(tmp_path, make_results("sft_winners"), make_results("n20_l5"), make_results("mine"))
    assert [part.title for part in found.sections] == ["Runs"]
    assert found.claims == {"holds": 0, "fails": 0, "undecided": 0} and "No claim" in found.lead
    for number in (1, 2, 3, 5, 6):
        assert any(note.startswith(f"Table {number} is left out") for note in found.notes)
    assert any("N-20-L-2 (n20_l2)" in note for note in found.notes)


def test_the_paper_is_not_spoken_of_where_no_run_is_a_row_of_it(tmp_path):
    mine, other = make_results("mine", lead=0.2), make_results("other", lead=-0.2)
    other["training"] = mine["training"] | {"dpo.beta": 50.0}
    other["attribution"] = "Drawn by someone."
    found = report(tmp_path, mine, other, sweeps=[make_sweep("mine")])
    assert [part.title for part in found.sections] == ["Runs", "Training", "Figure 8: Scale of the LoRA, mine"]
    assert found.lead.startswith("By the Held-out judge, mine has the highest win rate over the base: ")
    assert not any(word in " ".join([found.lead, *found.notes]) for word in ("paper", "claim", "Table", "left out"))
    assert found.attribution == "Drawn by someone."


def test_the_papers_tables_follow_the_runs(tmp_path):
    found = report(tmp_path, make_results("n2"), make_results("n5"))
    assert [part.title.split(":")[0] for part in found.sections] == ["Runs", "Table 3"]


def test_every_run_is_listed_with_its_scores_colours_and_diversity(tmp_path):
    other = make_results("mine", lead=0.1, shift=0.05)
    other["models"]["other"] = {**make_results("x")["models"]["tuned"], "label": "another LoRA", "diversity": None}
    (table,) = section(report(tmp_path, other), "Runs").tables
    assert [cells[0].text for cells in table.rows] == ["base", "mine", "mine, another LoRA"]
    mine = row(table, "mine")
    assert mine["Saturation"].values["shift"] == pytest.approx(5.0) and mine["Saturation"].text.startswith("+5.00")
    assert mine["Diversity"].values == {"diversity": 0.11}
    expected = np.mean(other["models"]["tuned"]["scores"]["oracle"])
    assert mine["Attribute oracle"].values["mean"] == pytest.approx(expected)
    assert row(table, "mine, another LoRA")["Diversity"].text == "–"


def test_measures_stand_beside_the_scores_of_every_run(tmp_path):
    results = make_results("mine", measures={"faces": {"kind": "share", "label": "One face", "description": ""}})
    for model, share in zip(results["models"].values(), (0, 1), strict=True):
        model["measures"] = {"faces": [[share, 1] for _ in PROMPTS]}
    (table,) = section(report(tmp_path, results), "Runs").tables
    found = [row(table, name)["One face"] for name in ("base", "mine")]
    assert [cell.values["mean"] for cell in found] == [0.5, 1.0]
    low, high = wilson_interval(0.5, len(PROMPTS))
    assert f"{100 * low:.1f} to {100 * high:.1f}" in found[0].detail


def test_each_score_of_a_kind_of_its_own_has_the_papers_number_beside_it(tmp_path):
    kinds = {"scorer": "pick_score", "hps": "hps_v2", "mine": "function", "clip": "clip_score"}
    scores = {name: {"kind": kind, "label": name, "description": ""} for name, kind in kinds.items()}
    found = report(tmp_path, make_results("n2", scores=scores), make_results("n5", scores=scores))
    table = section(found, "Table 3").tables[0]
    assert table.columns == ["Row", "scorer", "paper, PickScore", "hps", "paper, HPS", "mine", "clip", "paper, CLIP"]
    assert row(table, "N-5")["paper, CLIP"].text == "72.32\N{NO-BREAK SPACE}%"


def test_table_5_has_no_targets_where_the_paper_repeats_another_table(tmp_path):
    found = report(tmp_path, *(make_results(name) for name in ("n20_l2", "n20_l10", "n20")))
    part = section(found, "Table 5")
    assert [cells[3].text for cells in part.tables[0].rows] == ["–", "–", "88.70\N{NO-BREAK SPACE}%"]
    assert any("no target" in note for note in part.notes)


def shifts(tmp_path, n20, n20_sml):
    """The verdict on colours, from the shifts of the runs of two rows."""
    results = [make_results(f"n20-{seed}", shift=shift) for seed, shift in enumerate(n20)]
    results += [make_results(f"n20_sml-{seed}", shift=shift) for seed, shift in enumerate(n20_sml)]
    return marks(report(tmp_path, *results))["N-20 more than N-20-SML (HG-DPO)"]


@pytest.mark.parametrize(
    ("n20", "n20_sml", "verdict"),
    [
        ([0.10, -0.12], [0.01, -0.02], "holds"),
        ([0.01, 0.02], [0.03, -0.04], "fails"),
        ([0.10, 0.12], [0.01, 0.11], "undecided"),
        # There is no range to compare.
        ([0.10], [0.01], "undecided"),
    ],
)
def test_colours_are_decided_where_all_training_seeds_agree(tmp_path, n20, n20_sml, verdict):
    assert shifts(tmp_path, n20, n20_sml) == verdict


def test_colours_are_undecided_where_one_channel_disagrees(tmp_path):
    results = [
        make_results(f"{row}-{seed}", shift=0.1 if row == "n20" else 0.0) for row in ("n20", "n20_sml") for seed in "12"
    ]
    for each in results:
        if each["experiment"].startswith("n20_sml"):
            each["models"]["tuned"]["colors"]["value"] = 0.9
    found = report(tmp_path, *results)
    assert marks(found)["N-20 more than N-20-SML (HG-DPO)"] == "undecided"
    claim = row(section(found, "Table 2").tables[1], "N-20 more than N-20-SML (HG-DPO)")
    assert [claim[channel].detail for channel in ("Hue", "Saturation", "Value")] == ["holds", "holds", "fails"]


def test_runs_of_a_row_that_differ_in_more_than_their_seed_are_named(tmp_path):
    first, second = make_results("n20-1"), make_results("n20-2")
    second["training"] = first["training"] | {"dpo.beta": 50.0, "train.seed": 9}
    notes = report(tmp_path, first, second).notes
    assert "The runs of N-20 differ in more than their seed: dpo.beta." in notes


def ranks(**changes):
    return RankStatistics(**{**rank_statistics(), **changes})


def test_means_that_drift_apart_are_a_colour_shift_to_cure():
    verdict = rank_verdict(ranks())
    assert verdict.startswith("Winners and losers differ in their channel means") and "+0.05 ± 0.0028" in verdict
    assert "more than the deviations, as in the paper" in verdict


def test_means_that_drift_apart_no_more_than_the_deviations_are_told_as_such():
    assert "no more than the deviations" in rank_verdict(ranks(deviation_distance=np.linspace(0.01, 0.06, 8).tolist()))


def test_growth_within_two_standard_errors_is_no_colour_shift():
    # The two ends have an error of 0.02 each: 0.05 is less than twice 0.0283.
    verdict = rank_verdict(ranks(mean_distance_error=[0.02] * 8))
    assert "no colour shift to cure" in verdict
    assert "no colour shift to cure" in rank_verdict(ranks(mean_distance=np.linspace(0.06, 0.01, 8).tolist()))


def test_pools_of_two_images_tell_nothing_of_the_rank():
    short = {name: values[:1] for name, values in rank_statistics().items() if isinstance(values, list)}
    assert "three images" in rank_verdict(ranks(**short))


def test_figure_5b_is_that_of_the_largest_pool(tmp_path):
    found = report(
        tmp_path,
        make_results("n5", ranks=rank_statistics(ranks=4)),
        make_results("n20", ranks=rank_statistics(ranks=19)),
    )
    part = section(found, "Figure 5b")
    assert "the run n20" in part.notes[0] and len(part.tables[0].rows) == 19
    assert list(part.charts[0].series[0].x) == list(range(2, 21))


def test_figure_8_shows_scores_and_diversity_by_scale_and_averages_training_seeds(tmp_path):
    found = report(
        tmp_path,
        make_results("n20_sml-1"),
        make_results("n20_sml-2"),
        make_results("mine"),
        sweeps=[
            make_sweep("n20_sml-1"),
            make_sweep("n20_sml-2", rates=(0.5, 0.8, 0.9)),
            make_sweep("mine"),
        ],
    )
    titles = [part.title for part in found.sections if part.title.startswith("Figure 8")]
    assert titles == ["Figure 8: Scale of the LoRA, N-20-SML (HG-DPO)", "Figure 8: Scale of the LoRA, mine"]
    part = section(found, titles[0])
    win_rate, mean, diversity = part.charts
    assert [series.label for series in win_rate.series] == ["Training scorer", "Held-out judge", "Attribute oracle"]
    assert win_rate.series[1].y == pytest.approx([0.5, 0.75, 0.75]) and mean.series[0].y == pytest.approx(
        [16.5, 16.75, 16.75]
    )
    assert diversity.series[0].y == pytest.approx([0.12, 0.11, 0.10])
    assert row(part.tables[0], "0.5")["Held-out judge"].values["rate"] == pytest.approx(0.75)
    assert (len(part.grid.images), part.grid.columns) == (2, ["scale 0", "scale 0.5", "scale 1"])
    # With one training seed the interval is there too.
    alone, (low, high) = section(found, titles[1]), wilson_interval(0.7, len(PROMPTS))
    assert (
        f"{100 * low:.1f} to {100 * high:.1f}" in row(alone.tables[0], "0.5")["Held-out judge"].detail
        and len(alone.charts[0].series[1].low) == 3
    )


def test_table_6_has_a_curve_over_the_number_of_prompts(tmp_path):
    small, large = make_results("n20_2k"), make_results("n20")
    small["training"] = small["training"] | {"prompts.train_count": 8}
    (chart,) = section(report(tmp_path, large, small), "Table 6").charts
    assert list(chart.series[0].x) == [8.0, 384.0] and chart.log_x
