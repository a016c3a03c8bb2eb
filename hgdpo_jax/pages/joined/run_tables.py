"""Sections on all runs, whatever their names: their results, and the training settings that differ."""

from collections.abc import Sequence

from hgdpo_jax.evaluation.compared_models import BASE, TUNED
from hgdpo_jax.evaluation.comparison import compare
from hgdpo_jax.pages.joined.document import Section
from hgdpo_jax.pages.joined.runs import Run, training_differences
from hgdpo_jax.pages.numbers import setting
from hgdpo_jax.pages.tables import Cell, Table, base_cells, model_cells, model_heads


def runs_section(runs: Sequence[Run]) -> Section:
    first = runs[0]
    rows = [[Cell("base"), *base_cells(compare(first.results, first.base, first.base))]]
    for run in runs:
        for name, model in run.results.models.items():
            if name != BASE:
                label = run.name if name == TUNED else f"{run.name}, {model.label}"
                compared = compare(run.results, run.base, model)
                rows.append([Cell(label, values={"run": run.name, "model": name}), *model_cells(compared)])
    notes = [
        "Win rate over the base by every score, its 95 % interval and the mean score; measures with theirs; "
        "colour shift with its sign in per cent of the base's mean; diversity is the mean cosine distance of the image "
        "embeddings of one prompt."
    ]
    return Section("Runs", notes=notes, tables=[Table("", ["Run", *model_heads(first.results)], rows)])


def training_sections(runs: Sequence[Run]) -> list[Section]:
    """The training settings that differ between the runs, if any do."""
    differing = training_differences(runs)
    if not differing:
        return []
    rows = []
    for run in runs:
        values = [run.results.training.get(name) for name in differing]
        rows.append([Cell(run.name), *(Cell(setting(value), values={"value": value}) for value in values)])
    return [Section("Training", tables=[Table("Settings that differ", ["Run", *differing], rows)])]
