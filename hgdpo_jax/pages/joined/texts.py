"""A report as plain text, Markdown, LaTeX and JSON."""

import dataclasses
from typing import Any

from hgdpo_jax.files import json_text
from hgdpo_jax.pages.joined.document import Document
from hgdpo_jax.pages.tables import Cell, aligned

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
    "\N{NO-BREAK SPACE}": "~",
}


def as_plain_text(document: Document) -> str:
    """Tables in columns, for a terminal."""
    lines = [document.title, document.subtitle, document.lead]
    for section in document.sections:
        lines += ["", section.title]
        lines += [section.lead] if section.lead else []
        for table in section.tables:
            lines += ["", *([table.title] if table.title else []), *aligned(table.lines)]
        lines += ["", *section.notes] if section.notes else []
    return "\n".join([*lines, "", *document.notes]) + "\n"


def as_markdown(document: Document) -> str:
    """GitHub's Markdown."""
    blocks = [f"# {_markdown(document.title)}", _markdown(document.subtitle), _markdown(document.lead)]
    for section in document.sections:
        blocks.append(f"## {_markdown(section.title)}")
        blocks += [_markdown(section.lead)] if section.lead else []
        for table in section.tables:
            blocks += [f"### {_markdown(table.title)}"] if table.title else []
            ruler = "|---|" + "---:|" * (len(table.columns) - 1)
            lines = ["| " + " | ".join(map(_markdown, row)) + " |" for row in table.lines]
            blocks.append("\n".join([lines[0], ruler, *lines[1:]]))
        blocks += [_markdown(note) for note in section.notes]
    blocks += ["## Reading", *(_markdown(note) for note in document.notes)]
    return "\n\n".join(blocks) + "\n"


def as_latex(document: Document) -> str:
    """A file to \\input: one table environment a table, of nothing but LaTeX's own commands."""
    blocks = [f"% {document.title}. {document.subtitle}\n% {document.lead}"]
    for section in document.sections:
        for table in section.tables:
            caption = ". ".join(text for text in (section.title, table.title) if text)
            lines = [" & ".join(map(_latex, row)) + r" \\" for row in table.lines]
            blocks.append(
                "\n".join(
                    [
                        r"\begin{table}",
                        rf"\caption{{{_latex(caption)}.}}",
                        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
                        r"\hline",
                        lines[0],
                        r"\hline",
                        *lines[1:],
                        r"\hline",
                        r"\end{tabular}",
                        r"\end{table}",
                    ]
                )
            )
    return "\n\n".join(blocks) + "\n"


def as_json(document: Document) -> str:
    """All figures of the report; what is not finite is null."""
    sections = [
        {
            "title": section.title,
            "lead": section.lead,
            "notes": list(section.notes),
            "tables": [
                {
                    "title": table.title,
                    "columns": list(table.columns),
                    "rows": [[_cell_values(cell) for cell in row] for row in table.rows],
                }
                for table in section.tables
            ],
            "charts": [dataclasses.asdict(chart) for chart in section.charts],
        }
        for section in document.sections
    ]
    values = {
        "title": document.title,
        "subtitle": document.subtitle,
        "lead": document.lead,
        "claims": dict(document.claims),
        "sections": sections,
        "notes": list(document.notes),
        "settings": dict(document.settings),
    }
    return json_text(values, sort_keys=False)


def _cell_values(cell: Cell) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(cell).items() if value not in ("", {})}


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    for character in "\\`*_{}[]<>#|~":
        text = text.replace(character, "\\" + character)
    return " ".join(text.replace("\N{NO-BREAK SPACE}", " ").split())


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
