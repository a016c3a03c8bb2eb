"""Cells of tables, and how numbers are written in them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from hgdpo_jax.evaluation.win_rate import WinRate
from hgdpo_jax.pages.joined.document import Cell
from hgdpo_jax.pages.numbers import DASH

_SPACE = "\N{NO-BREAK SPACE}"


def rate_cell(rate: WinRate, seeds: Sequence[WinRate]) -> Cell:
    """A win rate with its interval, and its range over training seeds where there are several."""
    rates = [each.rate for each in seeds]
    detail = interval(rate)
    if len(rates) > 1:
        detail += f"; {len(rates)} seeds {span(min(rates), max(rates))}"
    return Cell(percent(rate.rate), detail, {**rate_values(rate), "training_seeds": rates})


def paper_cell(value: float | None) -> Cell:
    """A number that the paper prints, in per cent, or a dash where it prints none."""
    return Cell(DASH) if value is None else Cell(percent_points(value), values={"paper": value})


def number_cell(name: str, values: Sequence[float | None]) -> Cell:
    """The mean of what is there of these values, in four digits after the point."""
    found = [value for value in values if value is not None]
    mean = mean_of(found) if found else None
    return Cell(DASH if mean is None else f"{mean:.4f}", values={name: mean})


def rate_values(rate: WinRate) -> dict[str, Any]:
    """A win rate as plain values."""
    return {**dataclasses.asdict(rate), "p_value": rate.p_value}


def interval(rate: WinRate) -> str:
    """The 95 % interval of a win rate."""
    return span(rate.low, rate.high)


def span(low: float, high: float) -> str:
    """Two shares as the ends of a range."""
    return f"{100 * low:.1f} to {percent(high)}"


def percent(share: float) -> str:
    """A share of 1 in per cent."""
    return f"{100 * share:.1f}{_SPACE}%"


def percent_points(value: float) -> str:
    """A value in per cent."""
    return f"{value:.2f}{_SPACE}%" if math.isfinite(value) else DASH


def plain(value: float, digits: int = 3) -> str:
    """A number in so many significant digits."""
    return f"{value:.{digits}g}".replace("-", "−") if math.isfinite(value) else DASH


def p_value(value: float) -> str:
    """A p-value with its name."""
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def counted(count: int, noun: str) -> str:
    """How many there are of something."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def mean_of(values: Sequence[float]) -> float:
    """Their mean; there must be some."""
    return sum(values) / len(values)
