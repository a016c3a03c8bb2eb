"""Tables as plain values, which each format writes in its own way, and the cells that several tables share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hgdpo_jax.evaluation.color_shift import CHANNELS, ColorShift
from hgdpo_jax.evaluation.comparison import Comparison
from hgdpo_jax.evaluation.measures import SHARE, About
from hgdpo_jax.evaluation.prompt_means import Mean
from hgdpo_jax.evaluation.results import Results
from hgdpo_jax.evaluation.win_rate import WinRate
from hgdpo_jax.pages.numbers import DASH, format_score, p_value, percent, signed, signed_percent, span


@dataclasses.dataclass(frozen=True)
class Cell:
    """A text, smaller details below it separated by "; ", and the values behind both; `mark` is a verdict."""

    text: str
    detail: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mark: str = ""

    @property
    def line(self) -> str:
        """Text and detail on one line."""
        return f"{self.text} ({self.detail})" if self.text and self.detail else self.text or self.detail


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with one cell per column; a `folded` table is long and shown on demand, one of `prose` has no numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    prose: bool = False

    @property
    def lines(self) -> list[Sequence[str]]:
        """The texts of the heads and of each row."""
        return [self.columns, *([cell.line for cell in row] for row in self.rows)]


def aligned(rows: Sequence[Sequence[str]], numbers: bool = False) -> list[str]:
    """Lines of text in columns, aligned to the left; all but the first column to the right if they are `numbers`."""
    columns = []
    for place, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([text.rjust(width) if numbers and place else text.ljust(width) for text in column])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def model_heads(results: Results) -> list[str]:
    """Heads of the columns that `model_cells` fills."""
    return [*(about.label for about in results.scores.values()), *description_heads(results)]


def description_heads(results: Results) -> list[str]:
    """Heads of the columns that `description_cells` fills."""
    measures = (about.label for about in results.measures.values())
    return [*measures, *(channel.capitalize() for channel in CHANNELS), "Diversity"]


def model_cells(compared: Comparison) -> list[Cell]:
    """A model's win rates, measures, colour shift and diversity."""
    cells = []
    for score in compared.scores.values():
        detail = f"{interval(score.win_rate)}; mean {format_score(score.tuned_mean)}"
        values = {**rate_values(score.win_rate), "mean": score.tuned_mean}
        cells.append(Cell(percent(score.win_rate.rate), detail, values))
    return [*cells, *description_cells(compared)]


def description_cells(compared: Comparison) -> list[Cell]:
    """A model's measures, colour shift and diversity."""
    cells = [mean_cell(measure.about, measure.tuned) for measure in compared.measures.values()]
    for channel in CHANNELS:
        change = compared.color_shift.percent[channel]
        cells.append(Cell(signed_percent(change), values={"shift": change}))
    return [*cells, number_cell("diversity", [compared.diversity])]


def base_cells(compared: Comparison) -> list[Cell]:
    """In the columns of `model_cells`, the model that it is compared with."""
    means = [score.base_mean for score in compared.scores.values()]
    cells = [Cell(DASH, f"mean {format_score(mean)}", {"mean": mean}) for mean in means]
    return [*cells, *base_description_cells(compared)]


def base_description_cells(compared: Comparison) -> list[Cell]:
    """In the columns of `description_cells`, the model that it is compared with."""
    cells = [mean_cell(measure.about, measure.base) for measure in compared.measures.values()]
    return [*cells, *(Cell(DASH) for _ in CHANNELS), number_cell("diversity", [compared.base_diversity])]


def color_table(labels: Sequence[str], shift: ColorShift) -> Table:
    """Mean hue, saturation and value of both models, whose labels are given, and their changes."""
    rows = []
    for channel in CHANNELS:
        means = [Cell(f"{getattr(model, channel):.4f}") for model in (shift.base, shift.tuned)]
        rows.append([Cell(channel.capitalize()), *means, Cell(signed_percent(shift.percent[channel]))])
    degrees = [f"{shift.base.hue_degrees:.1f}", f"{shift.tuned.hue_degrees:.1f}", signed(shift.hue_degrees, 2)]
    rows.append([Cell("Hue, circular"), *(Cell(f"{each}°") for each in degrees)])
    return Table("", ["Channel", *labels, "Change"], rows)


def measure_table(labels: Sequence[str], compared: Comparison) -> Table:
    """Every measure of both models, and the difference prompt by prompt; where known their diversity."""
    rows = []
    for measure in compared.measures.values():
        factor, unit = (100, " points") if measure.about.kind == SHARE else (1, "")
        change = difference_cell(measure.difference, factor, unit)
        both = [mean_cell(measure.about, model) for model in (measure.base, measure.tuned)]
        rows.append([Cell(measure.about.label, measure.about.description), *both, change])
    if compared.base_diversity is not None and compared.diversity is not None:
        both = [number_cell("diversity", [value]) for value in (compared.base_diversity, compared.diversity)]
        rows.append([Cell("Diversity"), *both, Cell(signed(compared.diversity - compared.base_diversity))])
    return Table("", ["Measure", *labels, "Difference"], rows)


def mean_cell(about: About, mean: Mean) -> Cell:
    """A measure of one model with its interval."""
    values = dataclasses.asdict(mean)
    if about.kind == SHARE:
        return Cell(percent(mean.mean), span(mean.low, mean.high), values)
    return Cell(format_score(mean.mean), f"{format_score(mean.low)} to {format_score(mean.high)}", values)


def difference_cell(difference: Mean, factor: int = 1, unit: str = "") -> Cell:
    """A mean difference with its interval and p-value; the text shows `factor` times the values, in a unit."""
    mean, low, high = (signed(factor * value) for value in (difference.mean, difference.low, difference.high))
    values = dataclasses.asdict(difference)
    return Cell(f"{mean}{unit}", f"{low} to {high}; {p_value(difference.p_value)}", values)


def number_cell(name: str, values: Sequence[float | None]) -> Cell:
    """The mean of the values that are not None, with four decimals."""
    found = [value for value in values if value is not None]
    mean = mean_of(found) if found else None
    return Cell(DASH if mean is None else f"{mean:.4f}", values={name: mean})


def rate_values(rate: WinRate) -> dict[str, Any]:
    """A win rate as plain values."""
    return {**dataclasses.asdict(rate), "p_value": rate.p_value}


def interval(rate: WinRate) -> str:
    """The 95 % interval of a win rate."""
    return span(rate.low, rate.high)


def mean_of(values: Sequence[float]) -> float:
    """Mean of at least one value."""
    return sum(values) / len(values)
