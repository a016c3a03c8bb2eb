"""Sections on all runs, whatever their names: results, pictures, and the training settings that differ."""

from collections.abc import Sequence

from hgdpo_jax.evaluation.compared_models import BASE
from hgdpo_jax.evaluation.comparison import compare
from hgdpo_jax.pages.joined.document import ImageGrid, Section
from hgdpo_jax.pages.joined.progress import Progress
from hgdpo_jax.pages.joined.runs import Run, RunModel, models_of, training_differences
from hgdpo_jax.pages.numbers import DASH, setting
from hgdpo_jax.pages.tables import Cell, Table, base_cells, model_cells, model_heads


def runs_section(runs: Sequence[Run], unfinished: Sequence[Progress]) -> Section:
    """All models of all runs, and the runs that are not evaluated yet."""
    first = runs[0]
    rows = [[Cell("base"), *base_cells(compare(first.results, first.base, first.base))]]
    for model in models_of(runs):
        run, unfinished_stages = model.run, ", ".join(model.run.progress.unfinished)
        mark = f"not finished: {unfinished_stages}" if unfinished_stages else ""
        values = {"run": run.name, "model": model.name}
        rows.append([Cell(model.label, mark, values), *model_cells(compare(run.results, run.base, model.results))])
    notes = [
        "Win rate over the base by every score, its 95 % interval and the mean score; measures with theirs; "
        "colour shift with its sign in per cent of the base's mean; diversity is the mean cosine distance of the image "
        "embeddings of one prompt."
    ]
    tables = [Table("", ["Run", *model_heads(first.results)], rows)]
    if unfinished:
        states = [
            [Cell(each.folder.name), Cell(", ".join(each.missing)), Cell(", ".join(each.done) or DASH)]
            for each in unfinished
        ]
        tables.append(Table("Runs that are not evaluated yet", ["Run", "Missing", "Done"], states, prose=True))
        notes.append("A run resumes with the command that began it.")
    return Section("Runs", notes=notes, tables=tables)


def picture_sections(runs: Sequence[Run]) -> list[Section]:
    """The first prompts' pictures of the base and of all models, where the runs have kept them."""
    with_pictures = [run for run in runs if run.base.pictures and (run.folder / run.base.pictures[0]).is_file()]
    if not with_pictures:
        return []
    first = with_pictures[0]
    columns = [RunModel(first, BASE), *models_of(with_pictures)]
    count = min(len(column.results.pictures) for column in columns)
    images = [[column.run.folder / column.results.pictures[row] for column in columns] for row in range(count)]
    lead = "The first image of the first prompts of the test list, which no score has chosen."
    without = ", ".join(run.name for run in runs if run not in with_pictures)
    notes = [f"Without pictures, which earlier versions did not keep: {without}."] if without else []
    grid = ImageGrid([column.label for column in columns], first.results.prompts[:count], images)
    return [Section("Pictures", lead, notes, grid=grid)]


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
