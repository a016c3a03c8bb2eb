"""Tests the paper's claims on the rows of the user's runs."""

import dataclasses
from collections.abc import Mapping

from hgdpo_jax.evaluation.color_shift import CHANNELS
from hgdpo_jax.evaluation.prompt_means import Mean, paired_difference
from hgdpo_jax.evaluation.results import Results
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.pages.joined import paper
from hgdpo_jax.pages.joined.document import FAILS, HOLDS, UNDECIDED
from hgdpo_jax.pages.joined.runs import Row
from hgdpo_jax.pages.numbers import p_value, percent, percent_points
from hgdpo_jax.pages.tables import Cell, Table, difference_cell, interval, mean_of, rate_values


def claim_tables(number: int, results: Results, rows: Mapping[str, Row]) -> list[Table]:
    """The claims of a table, one table each, on the pairs whose rows are both there, by the scores of `results`."""
    if number == 2:
        heads = ["Claim", *(channel.capitalize() for channel in CHANNELS), "All seeds and channels"]
    else:
        heads = ["Claim", f"Difference, {results.scores[results.headline].label}", "Direct win rate", "At 95 %"]
        heads += ["Other scores"] if len(results.scores) > 1 else []
    tables = []
    for statement, pairs in paper.TABLES[number].claims.items():
        found = [(rows[one], rows[other]) for one, other in pairs if one in rows and other in rows]
        if found:
            cells = [_color_cells(*pair) if number == 2 else _score_cells(*pair, results) for pair in found]
            tables.append(Table(statement, heads, cells))
    return tables


def _score_cells(better: Row, worse: Row, results: Results) -> list[Cell]:
    """Whether one row has higher scores: what the headline score says decides."""
    sides = {name: (better.scores(name), worse.scores(name)) for name in results.scores}
    tested = {name: (paired_difference(*both), win_rate(*both)) for name, both in sides.items()}
    difference, direct = tested.pop(results.headline)
    cells = [
        Cell(f"{better.label} over {worse.label}"),
        difference_cell(difference),
        Cell(percent(direct.rate), f"{interval(direct)}; {p_value(direct.p_value)}", rate_values(direct)),
        _verdict(mark(difference)),
    ]
    if tested:
        texts, values = [], {}
        for name, (other, rate) in tested.items():
            texts.append(f"{results.scores[name].label}: {mark(other)} ({percent(rate.rate)})")
            values[name] = {"difference": dataclasses.asdict(other), "win_rate": rate_values(rate), "mark": mark(other)}
        cells.append(Cell("", "; ".join(texts), values))
    return cells


def _color_cells(more: Row, less: Row) -> list[Cell]:
    """Whether every training seed of one row shifts colours more than every one of the other."""
    cells = []
    for channel in CHANNELS:
        one, other = more.absolute_shifts(channel), less.absolute_shifts(channel)
        several = min(len(one), len(other)) > 1
        found = _mark(several and min(one) > max(other), several and max(one) < min(other))
        text = f"{percent_points(mean_of(one))} and {percent_points(mean_of(other))}"
        cells.append(Cell(text, found, {"more": mean_of(one), "less": mean_of(other)}))
    marks = {cell.detail for cell in cells}
    return [
        Cell(f"{more.label} more than {less.label}"),
        *cells,
        _verdict(marks.pop() if len(marks) == 1 else UNDECIDED),
    ]


def mark(difference: Mean) -> str:
    """What the interval says of the claim that the difference is positive."""
    return _mark(difference.low > 0, difference.high < 0)


def _mark(holds: bool, fails: bool) -> str:
    return HOLDS if holds else FAILS if fails else UNDECIDED


def _verdict(verdict: str) -> Cell:
    return Cell(verdict, mark=verdict)
