"""The paper's tables, filled with the rows of the user's runs, with its numbers beside them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from hgdpo_jax.evaluation.color_shift import CHANNELS
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.pages.charts import Curves, Series
from hgdpo_jax.pages.joined import paper
from hgdpo_jax.pages.joined.claims import claim_tables
from hgdpo_jax.pages.joined.document import Section
from hgdpo_jax.pages.joined.runs import Row, Run
from hgdpo_jax.pages.numbers import DASH, percent, percent_points, span
from hgdpo_jax.pages.tables import Cell, Table, interval, mean_of, rate_values


def table_section(number: int, first: Run, rows: Mapping[str, Row]) -> Section | None:
    """A table with its claims, by the scores of the run `first`; None where there are no two rows to compare."""
    table = paper.TABLES[number]
    if sum(name in rows for name in _rows_of(number)) < 2 or (number == 1 and paper.HG_DPO not in rows):
        return None
    return Section(
        f"Table {number}: {table.title}",
        notes=[note for note in (missing_note(number, rows), table.note) if note],
        tables=[_table(number, first, rows), *claim_tables(number, first.results, rows)],
        charts=_size_chart(first, rows) if number == 6 else [],
    )


def missing_note(number: int, rows: Mapping[str, Row]) -> str:
    """Says which rows of a table no run fills, as the paper and as configs call them; empty if none is missing."""
    names = ", ".join(f"{paper.ROW_LABELS[name]} ({name})" for name in _rows_of(number) if name not in rows)
    return names and f"Not among the runs: {names}."


def _rows_of(number: int) -> list[str]:
    # In Table 1, HG-DPO is compared with all rows.
    return [*([paper.HG_DPO] if number == 1 else []), *paper.TABLES[number].rows]


def _table(number: int, first: Run, rows: Mapping[str, Row]) -> Table:
    """Our numbers of each row that is there, and beside them the paper's where it prints some of this column."""
    table = paper.TABLES[number]
    names = [name for name in table.rows if name in rows]
    heads = ["HG-DPO over" if number == 1 else "Row"]
    columns = [[Cell(rows[name].label) for name in names]]
    for head, column, cells in _columns(number, first, rows, [rows[name] for name in names]):
        heads.append(head)
        columns.append(cells)
        if column in table.columns:
            heads.append(f"paper, {paper.COLUMN_LABELS[column]}")
            columns.append([_paper_cell(table.rows[name].get(column)) for name in names])
    return Table("", heads, list(zip(*columns, strict=True)))


def _columns(
    number: int, first: Run, rows: Mapping[str, Row], shown: Sequence[Row]
) -> Iterator[tuple[str, str, list[Cell]]]:
    """Each column's head, the paper's name of it, and a cell per row; only the last score of a kind has such a name."""
    if number == 2:
        for channel in CHANNELS:
            yield channel.capitalize(), channel, [_shift_cell(row.absolute_shifts(channel)) for row in shown]
        return
    scores = first.results.scores
    last_of_kind = {about.kind: score for score, about in scores.items()}
    for score, about in scores.items():
        if number == 1:
            cells = [_rate_cell(rows[paper.HG_DPO], score, row.scores(score)) for row in shown]
        else:
            cells = [_rate_cell(row, score, first.base.scores[score]) for row in shown]
        yield about.label, about.kind if last_of_kind[about.kind] == score else "", cells


def _size_chart(first: Run, rows: Mapping[str, Row]) -> list[Curves]:
    """The win rate by the headline score against the number of training prompts."""
    headline = first.results.headline
    rates = {}
    for name in paper.TABLES[6].rows:
        size = rows[name].members[0][0].results.training.get("prompts.train_count") if name in rows else None
        if size:
            rates[float(size)] = win_rate(rows[name].scores(headline), first.base.scores[headline])
    if len(rates) < 2:
        return []
    sizes = sorted(rates)
    rate, low, high = ([getattr(rates[size], name) for size in sizes] for name in ("rate", "low", "high"))
    series = Series(first.results.scores[headline].label, sizes, rate, low, high)
    title, note = "Win rate by the size of the data set", f"By {series.label}, with its 95 % interval."
    return [Curves(title, note, "training prompts", [series], level=0.5, percent=True, log_x=True)]


def _rate_cell(row: Row, score: str, other: Float[np.ndarray, "prompts seeds"]) -> Cell:
    """The win rate of a row over other scores, with its interval, and its range over several training seeds."""
    rate = win_rate(row.scores(score), other)
    seeds = [win_rate(model.scores[score], other).rate for _, model in row.members]
    several = f"; {len(seeds)} seeds {span(min(seeds), max(seeds))}" if len(seeds) > 1 else ""
    return Cell(percent(rate.rate), interval(rate) + several, {**rate_values(rate), "training_seeds": seeds})


def _paper_cell(value: float | None) -> Cell:
    """A number that the paper prints, in per cent, or a dash where it prints none."""
    return Cell(DASH) if value is None else Cell(percent_points(value), values={"paper": value})


def _shift_cell(shifts: Sequence[float]) -> Cell:
    detail = f"{len(shifts)} seeds {min(shifts):.2f} to {percent_points(max(shifts))}" if len(shifts) > 1 else ""
    return Cell(percent_points(mean_of(shifts)), detail, {"shift": mean_of(shifts), "training_seeds": list(shifts)})
