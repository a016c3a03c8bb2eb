"""The paper's tables, filled by rows of one's own, with its numbers beside them."""

from collections.abc import Callable, Mapping, Sequence

from hgdpo_jax.evaluation.color_shift import CHANNELS
from hgdpo_jax.evaluation.win_rate import WinRate, win_rate
from hgdpo_jax.pages.charts import Curves, Series
from hgdpo_jax.pages.joined import paper
from hgdpo_jax.pages.joined.claims import absolute_shifts, color_claim_tables, score_claim_tables
from hgdpo_jax.pages.joined.document import Section
from hgdpo_jax.pages.joined.runs import Row, Run
from hgdpo_jax.pages.numbers import DASH, percent_points
from hgdpo_jax.pages.tables import Cell, Table, mean_of, rate_cell


def table_section(number: int, first: Run, rows: Mapping[str, Row]) -> Section | None:
    """A table with its claims, by the scores of the run `first`; None where there are no two rows to compare."""
    found = [name for name in _names_in(number) if name in rows]
    if len(found) < 2 or (number == 1 and paper.HG_DPO not in rows):
        return None
    if number == 1:
        return _direct_section(first, rows)
    return _color_section(rows) if number == 2 else _over_base_section(number, first, rows)


def missing_rows(number: int, rows: Mapping[str, Row]) -> list[str]:
    """Names of the rows of a table that no run fills."""
    return [name for name in _names_in(number) if name not in rows]


def called(names: Sequence[str]) -> str:
    """These rows as the paper calls them, and as their runs are called."""
    return ", ".join(f"{paper.ROW_LABELS[name]} ({name})" for name in names)


def _direct_section(first: Run, rows: Mapping[str, Row]) -> Section:
    winner = rows[paper.HG_DPO]
    table = _score_table(1, first, rows, "HG-DPO over", lambda row, score: _direct_cell(winner, row, score))
    return Section(_title(1), [table, *score_claim_tables(1, first, rows)], notes=_missing_note(1, rows))


def _over_base_section(number: int, first: Run, rows: Mapping[str, Row]) -> Section:
    table = _score_table(number, first, rows, "Row", _over_base_cell)
    notes = _missing_note(number, rows)
    if number == 5:
        notes.append(
            "The paper prints for L-2, L-5 and L-10 the very numbers of N-2, N-5 and N-10 in Table 3, so they are no "
            "target and are left out; its claim is that the win rate grows with the loser's rank."
        )
    charts = _size_chart(first, rows) if number == 6 else []
    return Section(_title(number), [table, *score_claim_tables(number, first, rows)], charts, notes=notes)


def _score_table(
    number: int, first: Run, rows: Mapping[str, Row], head: str, compared: Callable[[Row, str], Cell]
) -> Table:
    """A table with a column a score, and beside the last score of a kind the paper's numbers, where it has some."""
    printed = paper.TABLES[number].rows
    kinds = [about.kind for about in first.results.scores.values()]
    heads = [head]
    lines = {name: [Cell(rows[name].label)] for name in printed if name in rows}
    for index, (score, about) in enumerate(first.results.scores.items()):
        heads.append(about.label)
        for name, line in lines.items():
            line.append(compared(rows[name], score))
        if about.kind not in kinds[index + 1 :] and any(about.kind in numbers for numbers in printed.values()):
            heads.append(f"paper, {paper.SCORE_COLUMNS[about.kind]}")
            for name, line in lines.items():
                line.append(_paper_cell(printed[name].get(about.kind)))
    return Table("", heads, list(lines.values()))


def _size_chart(first: Run, rows: Mapping[str, Row]) -> list[Curves]:
    """The win rate by the headline score against the number of training prompts."""
    points = []
    for name in paper.TABLES[6].rows:
        size = rows[name].members[0][0].results.training.get("prompts.train_count") if name in rows else None
        if size:
            points.append((float(size), _over_base(rows[name], first.results.headline)))
    if len(points) < 2:
        return []
    points.sort(key=lambda point: point[0])
    rates = [rate for _, rate in points]
    series = Series(
        first.results.scores[first.results.headline].label,
        [size for size, _ in points],
        [rate.rate for rate in rates],
        [rate.low for rate in rates],
        [rate.high for rate in rates],
    )
    title, note = "Win rate by the size of the data set", f"By {series.label}, with its 95 % interval."
    return [Curves(title, note, "training prompts", [series], level=0.5, percent=True, log_x=True)]


def _color_section(rows: Mapping[str, Row]) -> Section:
    table = paper.TABLES[2]
    heads = ["Row"]
    for channel in CHANNELS:
        heads += [channel.capitalize(), f"paper, {channel}"]
    cells = []
    for name, printed in table.rows.items():
        if name in rows:
            cells.append([Cell(rows[name].label)])
            for channel in CHANNELS:
                cells[-1] += [_shift_cell(absolute_shifts(rows[name], channel)), _paper_cell(printed.get(channel))]
    tables = [Table("", heads, cells), *color_claim_tables(rows)]
    notes = [
        *_missing_note(2, rows),
        "Absolute change of the mean over all pixels in per cent of the base's: the mean and the range over training "
        "seeds. A claim holds if the shift is larger with each seed of the one row than with each of the other, in all "
        "channels, and fails if it is smaller in the same way. There is no interval over prompts, so rows with one "
        "training seed decide nothing.",
    ]
    return Section(_title(2), tables, notes=notes)


def _over_base(row: Row, score: str) -> WinRate:
    # The same base in all runs, so that of the first serves.
    return win_rate(row.scores(score), row.members[0][0].base.scores[score])


def _over_base_cell(row: Row, score: str) -> Cell:
    seeds = [win_rate(model.scores[score], run.base.scores[score]) for run, model in row.members]
    return rate_cell(_over_base(row, score), seeds)


def _direct_cell(winner: Row, loser: Row, score: str) -> Cell:
    seeds = [win_rate(model.scores[score], loser.scores(score)) for _, model in winner.members]
    return rate_cell(win_rate(winner.scores(score), loser.scores(score)), seeds)


def _paper_cell(value: float | None) -> Cell:
    """A number that the paper prints, in per cent, or a dash where it prints none."""
    return Cell(DASH) if value is None else Cell(percent_points(value), values={"paper": value})


def _shift_cell(shifts: Sequence[float]) -> Cell:
    detail = f"{len(shifts)} seeds {min(shifts):.2f} to {percent_points(max(shifts))}" if len(shifts) > 1 else ""
    return Cell(percent_points(mean_of(shifts)), detail, {"shift": mean_of(shifts), "training_seeds": list(shifts)})


def _names_in(number: int) -> list[str]:
    # In Table 1 all rows are what HG-DPO is compared with.
    return [*([paper.HG_DPO] if number == 1 else []), *paper.TABLES[number].rows]


def _missing_note(number: int, rows: Mapping[str, Row]) -> list[str]:
    names = missing_rows(number, rows)
    return [f"Not among the runs: {called(names)}."] if names else []


def _title(number: int) -> str:
    return f"Table {number}: {paper.TABLES[number].title}"
