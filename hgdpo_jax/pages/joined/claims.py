"""Orderings that the paper claims, tested on rows of one's own."""

import dataclasses
from collections.abc import Mapping, Sequence

from hgdpo_jax.evaluation.color_shift import CHANNELS
from hgdpo_jax.evaluation.prompt_means import Mean, paired_difference
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.pages.joined import paper
from hgdpo_jax.pages.joined.document import FAILS, HOLDS, UNDECIDED
from hgdpo_jax.pages.joined.runs import Row, Run
from hgdpo_jax.pages.numbers import p_value, percent, percent_points, signed
from hgdpo_jax.pages.tables import Cell, Table, interval, mean_of, rate_values


def score_claim_tables(number: int, first: Run, rows: Mapping[str, Row]) -> list[Table]:
    """The claims of a table, one table each, where both of their rows are there."""
    head = first.results.scores[first.results.headline].label
    others = [name for name in first.results.scores if name != first.results.headline]
    heads = ["Claim", f"Difference, {head}", "Direct win rate", "At 95 %", *(["Other scores"] if others else [])]
    tables = []
    for ordering in paper.SCORE_ORDERINGS:
        cells = []
        for better, worse in ordering.pairs if ordering.table == number else ():
            if better in rows and worse in rows:
                cells.append(_claim_cells(rows[better], rows[worse], first, others))
        if cells:
            tables.append(Table(ordering.statement, heads, cells))
    return tables


def _claim_cells(better: Row, worse: Row, first: Run, others: Sequence[str]) -> list[Cell]:
    headline = first.results.headline
    difference = paired_difference(better.scores(headline), worse.scores(headline))
    direct = win_rate(better.scores(headline), worse.scores(headline))
    verdict = mark(difference)
    cells = [
        Cell(f"{better.label} over {worse.label}"),
        Cell(
            signed(difference.mean),
            f"{signed(difference.low)} to {signed(difference.high)}; {p_value(difference.p_value)}",
            dataclasses.asdict(difference),
        ),
        Cell(
            percent(direct.rate),
            f"{interval(direct)}; {p_value(direct.p_value)}",
            rate_values(direct),
        ),
        Cell(verdict, mark=verdict),
    ]
    if others:
        texts, values = [], {}
        for name in others:
            other = paired_difference(better.scores(name), worse.scores(name))
            rate = win_rate(better.scores(name), worse.scores(name))
            texts.append(f"{first.results.scores[name].label}: {mark(other)} ({percent(rate.rate)})")
            values[name] = {
                "difference": dataclasses.asdict(other),
                "win_rate": rate_values(rate),
                "mark": mark(other),
            }
        cells.append(Cell("", "; ".join(texts), values))
    return cells


def mark(difference: Mean) -> str:
    """What the interval says of the claim that the difference is positive."""
    if difference.low > 0:
        return HOLDS
    return FAILS if difference.high < 0 else UNDECIDED


def color_claim_tables(rows: Mapping[str, Row]) -> list[Table]:
    tables = []
    for ordering in paper.COLOR_ORDERINGS:
        cells = []
        for more, less in ordering.pairs:
            if more not in rows or less not in rows:
                continue
            line, marks = [Cell(f"{rows[more].label} more than {rows[less].label}")], []
            for channel in CHANNELS:
                one, other = absolute_shifts(rows[more], channel), absolute_shifts(rows[less], channel)
                marks.append(_color_mark(one, other))
                text = f"{percent_points(mean_of(one))} and {percent_points(mean_of(other))}"
                line.append(Cell(text, marks[-1], {"more": mean_of(one), "less": mean_of(other)}))
            verdict = marks[0] if len(set(marks)) == 1 else UNDECIDED
            cells.append([*line, Cell(verdict, mark=verdict)])
        if cells:
            heads = ["Claim", *(channel.capitalize() for channel in CHANNELS), "All seeds and channels"]
            tables.append(Table(ordering.statement, heads, cells))
    return tables


def _color_mark(more: Sequence[float], less: Sequence[float]) -> str:
    """Whether every training seed of the one shifts a channel more than every one of the other."""
    if min(len(more), len(less)) < 2:
        return UNDECIDED
    if min(more) > max(less):
        return HOLDS
    return FAILS if max(more) < min(less) else UNDECIDED


def absolute_shifts(row: Row, channel: str) -> list[float]:
    return [getattr(shift, channel) for shift in row.color_shifts()]
