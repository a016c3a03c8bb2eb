"""What HG-DPO (arXiv 2405.20216) reports, read from paper.toml: tables whose rows are experiments, and claims."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence

from etils import epath

HG_DPO = "n20_sml"


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table of the paper: the numbers printed for each row, by column, in per cent, and pairs of rows by claim."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, float]]
    claims: Mapping[str, Sequence[tuple[str, str]]]
    note: str = ""


def _table(rows: Mapping[str, Sequence[float]], columns: Sequence[str], **others) -> PaperTable:
    """A table as paper.toml has it: a row has a number for each column, or none."""
    by_column = {row: dict(zip(columns, numbers, strict=bool(numbers))) for row, numbers in rows.items()}
    return PaperTable(columns=columns, rows=by_column, **others)


_PAPER = tomllib.loads((epath.Path(__file__).parent / "paper.toml").read_text())
# How the paper calls rows, by the name of the experiment, and columns.
ROW_LABELS: Mapping[str, str] = _PAPER["labels"]
COLUMN_LABELS: Mapping[str, str] = _PAPER["columns"]
TABLES = {int(number): _table(**table) for number, table in _PAPER["tables"].items()}
