"""The joined report as a page, read by a parser and by a browser."""

import dataclasses
import html.parser

import pytest
from pages import assert_reads_well
from runs_on_disk import PROMPTS, make_results, make_sweep, write_run

from hgdpo_jax.pages.joined.content import build
from hgdpo_jax.pages.joined.formats import as_page
from hgdpo_jax.pages.joined.runs import read_runs


class Page(html.parser.HTMLParser):
    """Identifiers, references, addresses and text of a page."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.identifiers, self.references, self.sources, self.words = [], [], [], [], []
        self.feed(markup)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.identifiers.append(value)
            elif name in ("xlink:href", "href"):
                self.references.append(value)
            elif name == "src":
                self.sources.append(value)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def markup(many_runs):
    document = build(read_runs(many_runs))
    return as_page(dataclasses.replace(document, attribution="Drawn by <someone>."))


def test_the_page_needs_no_other_file_and_its_identifiers_are_unique(markup):
    page = Page(markup)
    assert "link" not in page.tags and "iframe" not in page.tags and "@import" not in markup and "http" not in markup
    assert page.sources and all(source.startswith("data:image/webp;base64,") for source in page.sources)
    assert page.references and {reference.removeprefix("#") for reference in page.references} <= set(page.identifiers)
    assert len(page.identifiers) == len(set(page.identifiers))


def test_the_page_has_every_table_mark_and_note_and_shows_prompts_as_text(many_runs, markup):
    document, page = build(read_runs(many_runs)), Page(markup)
    assert page.tags.count("table") == 1 + sum(len(section.tables) for section in document.sections)
    for mark, count in document.claims.items():
        assert markup.count(f'<span class="mark {mark}">') == count
    for note in document.notes:
        assert note in page.text
    assert PROMPTS[0] in page.text and "<b>" not in markup and "Drawn by <someone>." in page.text


def test_a_browser_reads_the_page_well(browser, markup, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(markup)
    assert_reads_well(browser, path, openable="img.openable")
    assert_reads_well(browser, path, openable=".chart")


def test_tables_of_five_scores_and_their_sweep_fit_as_well(browser, tmp_path):
    kinds = ("pick_score", "hps_v2", "image_reward", "aesthetic", "clip_score")
    scores = {kind: {"kind": kind, "label": f"score by {kind}", "description": ""} for kind in kinds}
    sweep = make_sweep("n20_sml", [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1], [0.5, 0.6, 0.6, 0.7, 0.7, 0.6, 0.4], scores)
    runs = [make_results(name, lead=0.1, scores=scores) for name in ("n2", "n20", "n20_sml", "long_name" * 9)]
    folders = [write_run(tmp_path, run, sweep if run["experiment"] == "n20_sml" else None) for run in runs]
    path = tmp_path / "index.html"
    path.write_text(as_page(build(read_runs(folders))))
    assert_reads_well(browser, path, openable="img.openable")
