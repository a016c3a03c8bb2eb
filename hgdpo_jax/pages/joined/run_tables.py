"""What is said of every run, whatever its name: its results, and in what its training differs from others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hgdpo_jax.evaluation.color_shift import shift_between
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.pages.joined import paper
from hgdpo_jax.pages.joined.cells import interval, number_cell, percent, rate_values
from hgdpo_jax.pages.joined.document import Cell, Section, Table
from hgdpo_jax.pages.joined.runs import BASE, TUNED, Model, Run
from hgdpo_jax.pages.numbers import DASH, format_score, signed


def runs_section(runs: Sequence[Run]) -> Section:
    first = runs[0]
    heads = ["Run", *(score.label for score in first.scores.values())]
    heads += [*(channel.capitalize() for channel in paper.CHANNELS), "Diversity"]
    base = [Cell("base")]
    for name in first.scores:
        mean = float(np.nanmean(first.base.scores[name]))
        base.append(Cell(DASH, f"mean {format_score(mean)}", {"mean": mean}))
    base += [*(Cell(DASH) for _ in paper.CHANNELS), number_cell("diversity", [first.base.diversity])]
    cells = [base]
    for run in runs:
        for name, model in run.models.items():
            if name != BASE:
                label = run.name if name == TUNED else f"{run.name}, {model.label}"
                cells.append([Cell(label, values={"run": run.name, "model": name}), *_model_cells(run, model)])
    notes = [
        "Win rate over the base by every score, its 95 % interval and the mean score; colour shift with its sign in "
        "per cent of the base's mean; diversity is the mean cosine distance of the image embeddings of one prompt."
    ]
    return Section("Runs", [Table("", heads, cells)], notes=notes)


def _model_cells(run: Run, model: Model) -> list[Cell]:
    cells = []
    for name in run.scores:
        rate, mean = win_rate(model.scores[name], run.base.scores[name]), float(np.nanmean(model.scores[name]))
        detail = f"{interval(rate)}; mean {format_score(mean)}"
        cells.append(Cell(percent(rate.rate), detail, {**rate_values(rate), "mean": mean}))
    shift = shift_between(run.base.colors, model.colors)
    for channel in paper.CHANNELS:
        change = getattr(shift, f"signed_{channel}")
        cells.append(Cell(f"{signed(change, 2)}\N{NO-BREAK SPACE}%", values={"shift": change}))
    return [*cells, number_cell("diversity", [model.diversity])]


def training_sections(runs: Sequence[Run]) -> list[Section]:
    """In what the runs' training differs; nothing where it does not."""
    names = dict.fromkeys(name for run in runs for name in run.training)
    differing = [name for name in names if len({str(run.training.get(name)) for run in runs}) > 1]
    if not differing:
        return []
    cells = [
        [
            Cell(run.name),
            *(Cell(_shown(run.training.get(name)), values={"value": run.training.get(name)}) for name in differing),
        ]
        for run in runs
    ]
    return [Section("Training", [Table("Settings that differ", ["Run", *differing], cells)])]


def _shown(value: Any) -> str:
    return DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)
