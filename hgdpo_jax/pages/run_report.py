"""The report of an evaluation: one self-contained page, summary.json, and the pictures beside it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.evaluation.comparison import Comparison, compare
from hgdpo_jax.evaluation.measures import TRAINING
from hgdpo_jax.evaluation.results import ModelResults, Results
from hgdpo_jax.evaluation.win_rate import WinRate
from hgdpo_jax.files import write_bytes, write_json, write_text
from hgdpo_jax.pages import charts, pictures, tables
from hgdpo_jax.pages.pictures import ImagePair, RankedImages
from hgdpo_jax.pages.templates import render

_SHOWN = 8
_IMAGE_HEIGHT = 384


@dataclasses.dataclass(frozen=True)
class RunReport:
    """All that the report shows.

    results: two models or more; the report compares the second with the first.
    examples: images of these two, not chosen by their scores; the first ones are at the top of the page.
    training: the training log, one mapping of scalars per step; `exported_step` is the one whose LoRA is exported.
    pairs: what `read_shown_pairs` gives: those whose scores differ most, and least, winner first.
    ranked: what `read_ranked` gives.
    settings, defaults: settings by their dotted names that differ from their defaults, and that do not.
    made: when, with which versions and on which devices the evaluation ran, as `provenance` gives it.
    """

    results: Results
    examples: Sequence[ImagePair] = ()
    training: Sequence[Mapping[str, float]] = ()
    exported_step: int | None = None
    pairs: Mapping[str, Sequence[ImagePair]] = dataclasses.field(default_factory=dict)
    ranked: Sequence[RankedImages] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    made: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def compared(self) -> list[Comparison]:
        """All other models against the first, the one that the report is about before the others."""
        first, *others = self.results.models.values()
        return [compare(self.results, first, model) for model in others]

    @property
    def labels(self) -> tuple[str, str]:
        """Labels of the two models."""
        first, second, *_ = self.results.models.values()
        return first.label, second.label

    @property
    def subtitle(self) -> str:
        """The numbers of prompts and of images."""
        arrays = [[*model.scores.values(), *model.measures.values()] for model in self.results.models.values()]
        unusable, seeds = sum(np.isnan(each).any(axis=0).sum() for each in arrays), arrays[0][0].shape[1]
        left_out = f"; {unusable:,} unusable images left out" if unusable else ""
        return f"{len(self.results.prompts):,} held-out prompts, {seeds} images each{left_out}"

    @property
    def title(self) -> str:
        """Which models of which experiment."""
        return f"{self.results.experiment}: {self.labels[1]} against {self.labels[0]}"

    @functools.cached_property
    def models(self) -> tables.Table:
        """The first model, and all others against it."""
        rows = [[tables.Cell(self.labels[0]), *tables.base_cells(self.compared[0])]]
        rows += [[tables.Cell(model.label), *tables.model_cells(model)] for model in self.compared]
        return tables.Table("", ["Model", *tables.model_heads(self.results)], rows)

    @property
    def descriptions(self) -> tables.Table:
        """What is said of each model besides its win rates."""
        rows = [[tables.Cell(self.labels[0]), *tables.base_description_cells(self.compared[0])]]
        rows += [[tables.Cell(model.label), *tables.description_cells(model)] for model in self.compared]
        return tables.Table("", ["Model", *tables.description_heads(self.results)], rows)

    @property
    def curves(self) -> list[charts.Curves]:
        """The charts of the training."""
        return charts.training_curves(self.training, self.exported_step)

    def __str__(self) -> str:
        """A summary for a terminal, with one column per model."""
        columns = self.models.lines
        lines = tables.aligned(list(zip(*columns, strict=True)))
        if self.results.pair_check:
            lines += str(self.results.pair_check).splitlines()
        return "\n  ".join([f"{self.title}, {self.subtitle}", *lines])


def example_pairs(results: Results, *images: np.ndarray) -> list[ImagePair]:
    """Pictures of the first prompts by the first two models, with their scores."""
    models = list(results.models.values())[:2]

    def scores(model: ModelResults, row: int) -> dict[str, float]:
        return {name: float(values[row, 0]) for name, values in model.scores.items() if np.isfinite(values[row, 0])}

    return [
        ImagePair(results.prompts[row], shown, [scores(model, row) for model in models])
        for row, shown in enumerate(zip(*images, strict=True))
    ]


def summarize(report: RunReport) -> dict[str, Any]:
    """The figures of the report, as written to summary.json."""
    compared = report.compared[0]
    scores, shift = compared.scores, compared.color_shift
    summary: dict[str, Any] = {
        "prompts": scores[report.results.headline].win_rate.prompts,
        "win_rate": {
            name: _figures(score.win_rate, "rate", "low", "high", "wins", "ties", "losses")
            for name, score in scores.items()
        },
        "per_image_win_rate": {name: score.per_image_win_rate for name, score in scores.items()},
        "mean_score": {name: {"base": score.base_mean, "tuned": score.tuned_mean} for name, score in scores.items()},
        "color_shift": {channel: abs(change) for channel, change in shift.percent.items()},
        "signed_color_shift": shift.percent,
        "hue_degrees": shift.hue_degrees,
    }
    if compared.measures:
        summary["measures"] = {name: dataclasses.asdict(measure) for name, measure in compared.measures.items()}
    if check := report.results.pair_check:
        # The mean margin; its name is part of the file's format.
        summary["pairs"] = {"count": check.pairs, "scorer_spread": check.margin}
        for name, score in check.scores.items():
            rates = _figures(score.win_rate, "rate", "low", "high")
            summary["pairs"][name] = rates | _figures(score, "winner_mean", "loser_mean")
    return summary


def _figures(of: Any, *names: str) -> dict[str, float]:
    return {name: getattr(of, name) for name in names}


def write_report(folder: epath.PathLike, report: RunReport) -> None:
    """Writes index.html, summary.json, grid.png, curves.png and pairs.png to `folder`.

    The same data gives the same bytes. What has no data (no training log, no pairs) is left out.
    """
    path, headline = epath.Path(folder), report.results.headline
    write_json(path / "summary.json", summarize(report), sort_keys=False)
    if examples := report.examples[:_SHOWN]:
        write_bytes(path / "grid.png", pictures.pair_grid(examples, report.labels, headline))
    if drawn := report.curves:
        write_bytes(path / "curves.png", charts.curves_figure(drawn))
    if pairs := [pair for shown in report.pairs.values() for pair in shown[: _SHOWN // 2]]:
        write_bytes(path / "pairs.png", pictures.pair_grid(pairs, ("Winner", "Loser"), headline))
    write_text(path / "index.html", render_page(report))


def render_page(report: RunReport) -> str:
    """The report as one HTML page that needs no other file."""
    compared, labels = report.compared[0], report.labels
    return render(
        "run_report.html.jinja",
        picture=lambda image: pictures.data_uri(image, _IMAGE_HEIGHT),
        picture_file=lambda path: pictures.file_uri(path, _IMAGE_HEIGHT),
        title=report.title,
        subtitle=report.subtitle,
        report=report,
        labels=labels,
        compared=compared,
        chose_pairs=report.results.headline == TRAINING,
        measures=tables.measure_table(labels, compared),
        colors=tables.color_table(labels, compared.color_shift),
        charts=[(curves, charts.curves_svg(curves, curves.title)) for curves in report.curves],
        verdict=verdict,
    )


def verdict(win_rate: WinRate) -> str:
    """What the interval of a win rate supports."""
    if win_rate.low > 0.5:
        return "better"
    if win_rate.high < 0.5:
        return "worse"
    return "no difference shown"
