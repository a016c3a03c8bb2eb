"""A report as plain values: sections of tables and figures, which each format writes in its own way."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from hgdpo_jax.pages.charts import Curves
from hgdpo_jax.pages.tables import Table

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"


@dataclasses.dataclass(frozen=True)
class ImageGrid:
    """Image files: one row per prompt, one column per label."""

    columns: Sequence[str]
    prompts: Sequence[str]
    images: Sequence[Sequence[epath.Path]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A table or figure of the paper, with a lead sentence and notes."""

    title: str
    lead: str = ""
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Curves] = ()
    grid: ImageGrid | None = None


@dataclasses.dataclass(frozen=True)
class Document:
    """The whole report; `claims` counts the verdicts, `settings` are those that all runs share.

    `attribution` says whose work the pictures show.
    """

    title: str
    subtitle: str
    lead: str
    claims: Mapping[str, int]
    sections: Sequence[Section]
    notes: Sequence[str]
    settings: Mapping[str, Any]
    attribution: str = ""
