"""All formats say the same, and show text as it was given."""

import json
import re

import pytest
from runs_on_disk import make_results, write_run

from hgdpo_jax.pages.joined.content import build
from hgdpo_jax.pages.joined.document import Document, Section
from hgdpo_jax.pages.joined.formats import as_json, as_latex, as_markdown, as_plain_text
from hgdpo_jax.pages.joined.runs import read_runs
from hgdpo_jax.pages.tables import Cell, Table


@pytest.fixture(scope="module")
def document(many_runs):
    return build(read_runs(many_runs))


def figures(text):
    """All numbers in a text, in their order."""
    return re.findall(r"\d+\.\d+", text)


def tables_of_markdown(text):
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        for block in blocks
    ]


def tables_of_latex(text):
    bodies = re.findall(r"\\begin\{tabular\}\{l(r*)\}\n(.*?)\\end\{tabular\}", text, re.S)
    return [
        [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in body.splitlines() if line != r"\hline"]
        for _, body in bodies
    ]


def test_all_formats_have_the_same_tables_with_the_same_figures(document):
    values = [table for section in json.loads(as_json(document))["sections"] for table in section["tables"]]
    markdown, latex, plain = (
        tables_of_markdown(as_markdown(document)),
        tables_of_latex(as_latex(document)),
        as_plain_text(document),
    )
    assert len(values) == len(markdown) == len(latex) > 10
    for table, in_markdown, in_latex in zip(values, markdown, latex, strict=True):
        # Markdown has a ruler below the heads.
        assert len(in_markdown) - 2 == len(in_latex) - 1 == len(table["rows"]) > 0
        for cells, line, tex in zip(table["rows"], in_markdown[2:], in_latex[1:], strict=True):
            assert len(cells) == len(line) == len(tex) == len(table["columns"])
            for cell, one, other in zip(cells, line, tex, strict=True):
                shown = figures(f"{cell.get('text', '')} {cell.get('detail', '')}")
                assert shown == figures(one) == figures(other)
        assert table["rows"][0][-1].get("text", "") in plain


def test_json_holds_the_unrounded_figures_behind_what_is_shown(document):
    values = json.loads(as_json(document))
    table = next(section for section in values["sections"] if section["title"].startswith("Table 3"))["tables"][0]
    cell = next(cells for cells in table["rows"] if cells[0]["text"] == "N-20")[
        table["columns"].index("Held-out judge")
    ]
    assert f"{100 * cell['values']['rate']:.1f}" in cell["text"]
    assert {"low", "high", "wins", "ties", "losses", "p_value", "training_seeds"} <= set(cell["values"])
    assert values["claims"] == dict(document.claims) and sum(values["claims"].values()) == 16


def test_what_is_not_finite_is_null_in_json(tmp_path):
    results = make_results("mine")
    results["models"]["base"]["colors"] = {"hue": 0.0, "saturation": 0.4, "value": 0.7, "hue_degrees": 0.0}
    document = build(read_runs([write_run(tmp_path, results)]))
    (table,) = json.loads(as_json(document))["sections"][0]["tables"]
    assert table["rows"][1][table["columns"].index("Hue")]["values"]["shift"] is None


def test_signs_of_the_formats_are_escaped():
    hostile = "50 % of_a|b & <b>*c*</b> {d} #1 \\e ~f ^g $h"
    table = Table(hostile, ["Run", hostile], [[Cell(hostile), Cell("1.0", hostile)]])
    document = Document("t", "s", hostile, {}, [Section(hostile, hostile, tables=[table])], [hostile], {})
    (markdown,) = tables_of_markdown(as_markdown(document))
    assert [len(line) for line in markdown] == [2, 2, 2]
    assert markdown[2][0] == r"50 % of\_a\|b & \<b\>\*c\*\</b\> \{d\} \#1 \\e \~f ^g $h"
    (latex,) = tables_of_latex(as_latex(document))
    assert [len(line) for line in latex] == [2, 2]
    expected = (
        r"50 \% of\_a|b \& \textless{}b\textgreater{}*c*\textless{}/b\textgreater{} \{d\} \#1 \textbackslash{}e "
        r"\textasciitilde{}f \textasciicircum{}g \$h"
    )
    assert latex[1][0].strip() == expected


def test_environments_of_latex_are_closed(document):
    text = as_latex(document)
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 10
    unescaped = [line for line in text.splitlines() if not line.startswith("%") and re.search(r"(?<!\\)[%#_]", line)]
    assert unescaped == []
