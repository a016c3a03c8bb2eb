"""A report as an HTML page, plain text, Markdown, LaTeX and JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hgdpo_jax.files import json_text
from hgdpo_jax.pages.charts import curves_svg
from hgdpo_jax.pages.joined.document import Document
from hgdpo_jax.pages.pictures import file_uri
from hgdpo_jax.pages.tables import aligned
from hgdpo_jax.pages.templates import render, render_text

# A grid has dozens of images.
_IMAGE_HEIGHT = 256

_MARKDOWN = str.maketrans({character: "\\" + character for character in "\\`*_{}[]<>#|~"})
_LATEX = str.maketrans(
    {
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
)
# Fields that JSON leaves out: those that only pages need, and those of a cell if they are empty.
_LEFT_OUT, _OPTIONAL = ("folded", "grid", "prose"), ("text", "detail", "values", "mark")


def as_page(document: Document) -> str:
    """One HTML page with its charts and images, which needs no other file."""
    return render(
        "joined/joined.html.jinja",
        picture=lambda path: file_uri(path, _IMAGE_HEIGHT),
        title=document.title,
        subtitle=document.subtitle,
        document=document,
        charts={
            section.title: [(chart, curves_svg(chart, f"{section.title}: {chart.title}")) for chart in section.charts]
            for section in document.sections
        },
    )


def as_plain_text(document: Document) -> str:
    """Tables in columns, for a terminal."""
    return render_text("joined/joined.txt.jinja", str, document=_without_pictures(document), aligned=aligned)


def as_markdown(document: Document) -> str:
    """GitHub's Markdown."""
    return render_text("joined/joined.md.jinja", _markdown, document=_without_pictures(document))


def as_latex(document: Document) -> str:
    """A file to \\input: one environment per table, of nothing but LaTeX's own commands."""
    return render_text("joined/joined.tex.jinja", _latex, document=document)


def as_json(document: Document) -> str:
    """All figures of the report; what is not finite is null."""
    return json_text(dataclasses.asdict(_without_pictures(document), dict_factory=_figures), sort_keys=False)


def _without_pictures(document: Document) -> Document:
    """The document without sections that have nothing but pictures."""
    return dataclasses.replace(document, sections=[section for section in document.sections if section.tables])


def _figures(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name not in _LEFT_OUT and (value or name not in _OPTIONAL)}


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table too; spaces, of any kind, become single ones."""
    return " ".join(text.translate(_MARKDOWN).split())


def _latex(text: str) -> str:
    return text.translate(_LATEX)
