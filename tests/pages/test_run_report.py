import dataclasses
import html.parser
import json

import numpy as np
import pytest
from etils import epath
from pages import assert_reads_well

from hgdpo_jax.evaluation.color_shift import hsv_means
from hgdpo_jax.evaluation.measures import About
from hgdpo_jax.evaluation.pair_check import PairCheck, PairScore
from hgdpo_jax.evaluation.results import ModelResults, Results
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.pages.pictures import RankedImages, webp_bytes
from hgdpo_jax.pages.run_report import RunReport, example_pairs, render_page, summarize, verdict, write_report

HOSTILE = '<script>alert("1")</script> & <img src=x onerror=alert(2)>'


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(markup)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data.split()


def results(measures=(), **scores):
    """An evaluation of 3 prompts and 4 seeds, with scores (base's, tuned's) by name."""
    generator = np.random.default_rng(0)
    colors = [hsv_means(images) for images in generator.integers(0, 256, (2, 3, 16, 12, 3), dtype=np.uint8)]
    about = {
        "scorer": About("pick_score", "training scorer", "chose the pairs"),
        "judge": About("pick_score", "held-out judge", "right on 97.0 %"),
    }
    models = {
        name: ModelResults(
            label=label,
            scores={score: values[side] for score, values in scores.items()},
            measures={measure: values[side] for measure, (_, *values) in dict(measures).items()},
            colors=colors[side],
            diversity=(0.5, 0.25)[side],
        )
        for side, (name, label) in enumerate((("base", "base"), ("tuned", "LoRA <at> 0.5")))
    }
    return Results(
        experiment="A report",
        settings={},
        prompts=["a woman with red hair", HOSTILE, "a man"],
        headline=list(scores)[-1],
        scores={score: about[score] for score in scores},
        measures={measure: kind for measure, (kind, *_) in dict(measures).items()},
        models=models,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    picture = epath.Path(tmp_path_factory.mktemp("ranked")) / "picture.webp"
    picture.write_bytes(webp_bytes(np.zeros((16, 12, 3), np.uint8), 32))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, 3, 16, 12, 3), dtype=np.uint8)
    scores = generator.normal(20, 1, (2, 3, 4))
    check = PairCheck(
        9, 4.2, {"judge": PairScore("held-out judge", win_rate(np.ones((9, 1)), np.zeros((9, 1))), 80.0, 65.5)}
    )
    found = results(scorer=(scores[1], scores[0] + 5), judge=(scores[1], scores[0]))
    examples = example_pairs(found, *images)
    return RunReport(
        dataclasses.replace(
            found, pair_check=check, attribution="Drawn by someone. " + "an/address/that/never/breaks/" * 3
        ),
        examples=examples,
        training=[{"step": step, "loss": 0.7, "dpo_loss": 0.69, "validation_win_rate": 0.6} for step in (1, 2, 3)],
        pairs={"best": examples[:1], "worst": examples[1:2]},
        exported_step=2,
        ranked=[RankedImages("a man", (1, 2, 8), (9.5, 8.5, 7.5), [picture] * 3)],
        settings={"dpo.beta": 2500, "note": HOSTILE},
        defaults={"train.seed": 7},
        made={"time": "2025-01-02 03:04 UTC", "hgdpo_jax": "9.8", "jax": "7.6", "devices": "5 x H100"},
    )


def test_page_is_well_formed_and_needs_no_other_file(report):
    page = Page(render_page(report))
    assert page.open == []
    assert "link" not in page.tags and "iframe" not in page.tags
    sources = [value for _, name, value in page.attributes if name in ("src", "srcset", "href", "data", "xlink:href")]
    assert sources and all(value.startswith(("data:", "#")) for value in sources)
    assert "http" not in render_page(report) and "@import" not in render_page(report)


def test_identifiers_are_unique_and_references_find_them(report):
    page = Page(render_page(report))
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    references = [value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")]
    assert references and set(references) <= set(identifiers) and len(identifiers) == len(set(identifiers))


def test_tables_say_what_their_heads_are_heads_of(report):
    page = Page(render_page(report))
    assert page.tags.count("th") == sum(name == "scope" for _, name, _ in page.attributes) > 10


def test_prompts_and_settings_are_shown_as_text_never_as_markup(report):
    markup = render_page(report)
    page = Page(markup)
    assert page.tags.count("script") == 1 and "onerror=alert(2)>" not in markup
    assert " ".join(HOSTILE.split()) in page.text
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    for pair in report.examples:
        assert pair.prompt in page.text


def test_contents_lead_to_every_section_and_each_section_leads_back(report):
    page = Page(render_page(report))
    sections, links = page.tags.count("h2"), [value for _, name, value in page.attributes if name == "href"]
    assert (
        sections > 5 and links == [f"#section-{index}" for index in range(1, sections + 1)] + ["#contents"] * sections
    )


def test_lead_says_in_words_who_wins_by_each_score_and_what_is_tied():
    better, ties = (np.zeros((40, 4)), np.ones((40, 4))), (np.zeros((40, 4)), np.zeros((40, 4)))
    lead = Page(render_page(RunReport(results(scorer=better, judge=ties)))).text.split("Colours moved")[0]
    assert "On 40 held-out prompts, LoRA <at> 0.5 is not shown to differ from base by the held-out judge" in lead
    assert "and better by the training scorer. The held-out judge ties on 40 of 40 prompts." in lead


def test_each_win_rate_is_shown_once(report):
    text = Page(render_page(report)).text.replace("\N{NO-BREAK SPACE}", " ")
    for score in report.compared[0].scores.values():
        assert text.count(f"{100 * score.win_rate.low:.1f} % – {100 * score.win_rate.high:.1f} %") == 1
    assert "%" not in text.split("Colours moved")[0]


def test_win_rates_of_all_models_are_in_one_table(report):
    models = report.results.models
    third = dataclasses.replace(models["tuned"], label="another LoRA")
    markup = render_page(RunReport(dataclasses.replace(report.results, models={**models, "third": third})))
    table = Page(markup.split('class="stacked wide rates"')[1].split("</table>")[0])
    assert table.tags.count("tr") == 1 + 2 * 2 and "training scorer , another LoRA" in table.text


def test_page_says_where_the_only_score_chose_the_pairs(report):
    by_scorer = RunReport(results(scorer=np.random.default_rng(0).normal(20, 1, (2, 3, 4))))
    words = "not an independent judge"
    assert words in Page(render_page(by_scorer)).text and words not in Page(render_page(report)).text


def test_page_says_when_and_on_what_it_was_evaluated(report):
    words = "Evaluated 2025-01-02 03:04 UTC with hgdpo_jax 9.8 and JAX 7.6 on 5 x H100."
    assert words in Page(render_page(report)).text
    assert "Evaluated" not in Page(render_page(RunReport(report.results))).text


def test_images_of_a_pool_have_their_ranks_and_scores(report):
    text = Page(render_page(report)).text.split("Pool images by rank")[-1]
    assert "1st, 9.500 · a man 2nd, 8.500 · a man 8th, 7.500" in text


def test_measures_are_shown_with_their_intervals_and_the_difference():
    share = (About("share", "bright images", "brighter than 100"), np.zeros((3, 4)), np.ones((3, 4)))
    mean = (About("mean", "brightness", ""), np.full((3, 4), 7.5), np.array([[9.0], [10], [11]]).repeat(4, 1))
    scores = np.random.default_rng(0).normal(20, 1, (2, 3, 4))
    report = RunReport(results({"bright": share, "brightness": mean}, judge=scores))
    text = Page(render_page(report)).text.split("Measures")[-1].split("Colour shift")[0]
    # Three prompts: Wilson's interval of all of three, and t of two degrees.
    for words in (
        "bright images brighter than 100 0.0 %",
        "43.9 to 100.0 %",
        "+100 points",
        "10 7.516 to 12.48",
        "+2.5",
    ):
        assert words in text.replace("\N{NO-BREAK SPACE}", " ")
    found = summarize(report)["measures"]["bright"]
    assert (found["base"]["mean"], found["tuned"]["mean"], found["difference"]["mean"]) == (0.0, 1.0, 1.0)
    assert "bright images 0.0 % (0.0 to 56.1 %) 100.0 % (43.9 to 100.0 %)" in " ".join(str(report).split())


def test_page_shows_pairs_settings_accuracy_and_attribution(report):
    text = Page(render_page(report)).text
    for words in (
        "+14.50",
        "dpo.beta 2500",
        "1 settings at their defaults train.seed 7",
        "marks step 2.",
        "right on 97.0",
        "Drawn by someone.",
        "DPO loss",
        "0.2500",
    ):
        assert words in text


def test_summary_has_the_promised_shape(report, tmp_path):
    write_report(tmp_path, report)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == summarize(report)
    assert summary["prompts"] == 3
    assert set(summary["win_rate"]) == {"scorer", "judge"}
    assert {"rate", "low", "high"} <= set(summary["win_rate"]["judge"])
    assert set(summary["color_shift"]) == {"hue", "saturation", "value"}
    assert summary["pairs"]["judge"]["winner_mean"] - summary["pairs"]["judge"]["loser_mean"] == pytest.approx(14.5)


def test_same_data_give_the_same_files(report, tmp_path):
    names = ["curves.png", "grid.png", "index.html", "pairs.png", "summary.json"]
    for folder in ("one", "two"):
        write_report(tmp_path / folder, report)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_report_of_an_evaluation_alone_leaves_out_what_it_has_no_data_for(report, tmp_path):
    alone = RunReport(dataclasses.replace(report.results, pair_check=None), report.examples)
    write_report(tmp_path, alone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "index.html", "summary.json"]
    page = Page((tmp_path / "index.html").read_text())
    assert "Settings" not in page.text and "learned" not in page.text
    assert ("figure", "class", "chart") not in page.attributes


def test_change_without_a_finite_value_becomes_null(report, tmp_path):
    grey = dataclasses.replace(report.results.models["base"].colors, saturation=0.0)
    models = {**report.results.models, "base": dataclasses.replace(report.results.models["base"], colors=grey)}
    write_report(tmp_path, RunReport(dataclasses.replace(report.results, models=models)))
    assert json.loads((tmp_path / "summary.json").read_text())["color_shift"]["saturation"] is None


def test_verdict_follows_the_interval():
    better = win_rate(np.ones((30, 1)), np.zeros((30, 1)))
    assert verdict(better) == "better"
    assert verdict(win_rate(np.zeros((30, 1)), np.ones((30, 1)))) == "worse"
    assert verdict(win_rate(np.ones((3, 1)), np.ones((3, 1)))) == "no difference shown"


def test_a_browser_reads_the_page_well(browser, report, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(render_page(report))
    assert_reads_well(browser, path, openable=".openable")


def test_two_images_are_compared_with_the_keyboard_alone(browser, report, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(render_page(report))
    page = browser.open(path)
    assert page.evaluate("document.querySelector('.comparable').getAttribute('role')") == "button"
    page.evaluate("document.querySelector('.comparable').focus()")
    page.press("Enter", 13)
    page.press("ArrowRight", 39)
    slider = "document.activeElement"
    assert page.evaluate(f"[{slider}.value, {slider}.getAttribute('aria-valuetext')]") == ["51", "51 % base"]
    assert page.evaluate(f"getComputedStyle({slider}.parentElement).getPropertyValue('--divide')") == "51%"
    page.press("Escape", 27)
    assert page.evaluate("[document.querySelector('dialog').open, document.activeElement.className]") == [
        False,
        "pair openable comparable",
    ]
    page.close()
