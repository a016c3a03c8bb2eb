"""The report of an evaluation: one self-contained page, summary.json, and the figures beside it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe
from etils import epath

from hgdpo_jax.evaluation.color_shift import ColorShift
from hgdpo_jax.evaluation.pair_check import PairCheck
from hgdpo_jax.evaluation.win_rate import ScoreComparison, WinRate
from hgdpo_jax.files import write_bytes, write_text
from hgdpo_jax.pages import charts, pictures
from hgdpo_jax.pages.numbers import finite_or_none, format_score, signed
from hgdpo_jax.pages.pictures import ImagePair
from hgdpo_jax.pages.templates import page_environment

HERO_PAIRS = 8
PAGE_IMAGE_HEIGHT = 384


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """A model against the one that all are compared with: by every score, in colours, and its own diversity."""

    label: str
    scores: Mapping[str, ScoreComparison]
    color_shift: ColorShift
    diversity: float | None = None


@dataclasses.dataclass(frozen=True)
class ReportData:
    """All that the report shows, as plain values.

    labels: of the model that all are compared with, and of the one that the report is about, the first of `models`.
    headline: the score to lead with, by the name that scores have in summary.json.
    diversity: that of the model that all are compared with.
    examples: of these two, not chosen by their scores; the first of them stand at the top of the page.
    training: the training log, one mapping of scalars a step.
    best_pairs, worst_pairs: winner first, loser second: the pairs of the pool set apart furthest, and least.
    settings: nested or flat; values are shown as text.
    """

    title: str
    subtitle: str
    labels: tuple[str, str]
    headline: str
    models: Sequence[ModelRow]
    examples: Sequence[ImagePair]
    diversity: float | None = None
    training: Sequence[Mapping[str, float]] = ()
    pair_check: PairCheck | None = None
    best_pairs: Sequence[ImagePair] = ()
    worst_pairs: Sequence[ImagePair] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attribution: str = ""

    @property
    def scores(self) -> Mapping[str, ScoreComparison]:
        """The comparison that the report is about, by every score."""
        return self.models[0].scores

    @property
    def color_shift(self) -> ColorShift:
        """The shift of the model that the report is about."""
        return self.models[0].color_shift

    def __str__(self) -> str:
        """What one wants to know first, in a few lines."""
        lines = []
        for model in self.models:
            lines.append(f"{model.label} against {self.labels[0]}, {self.subtitle}")
            for score in model.scores.values():
                rate = score.win_rate
                lines.append(
                    f"  {score.label:16}  win rate {100 * rate.rate:5.1f} % (95 % interval {100 * rate.low:.1f} to "
                    f"{100 * rate.high:.1f}), image by image {100 * score.per_image_win_rate:.1f} %, mean "
                    f"{score.base_mean:.2f} -> {score.tuned_mean:.2f}"
                )
            shift = model.color_shift
            lines.append(
                f"  colour shift      hue {shift.signed_hue:+.2f} %, saturation {shift.signed_saturation:+.2f} %, "
                f"value {shift.signed_value:+.2f} %; mean hue {shift.hue_degrees:+.1f} degrees"
            )
            if model.diversity is not None and self.diversity is not None:
                lines.append(f"  diversity         {self.diversity:.4f} -> {model.diversity:.4f}")
        if self.pair_check:
            lines += [f"  {line}" for line in str(self.pair_check).splitlines()]
        return "\n".join(lines)


def summarize(report: ReportData) -> dict[str, Any]:
    """The figures of the report as written to summary.json; what is not finite becomes null."""
    scores, shift = report.scores, report.color_shift
    summary: dict[str, Any] = {
        "prompts": scores[report.headline].win_rate.prompts,
        "win_rate": {
            name: {key: getattr(score.win_rate, key) for key in ("rate", "low", "high", "wins", "ties", "losses")}
            for name, score in scores.items()
        },
        "per_image_win_rate": {name: score.per_image_win_rate for name, score in scores.items()},
        "mean_score": {name: {"base": score.base_mean, "tuned": score.tuned_mean} for name, score in scores.items()},
        "color_shift": {
            "hue": shift.hue,
            "saturation": shift.saturation,
            "value": shift.value,
        },
        "signed_color_shift": {
            "hue": shift.signed_hue,
            "saturation": shift.signed_saturation,
            "value": shift.signed_value,
        },
        "hue_degrees": shift.hue_degrees,
    }
    if report.pair_check is not None:
        check = report.pair_check
        summary["pairs"] = {"count": check.pairs, "scorer_spread": check.spread}
        for name, score in check.scores.items():
            rates = {key: getattr(score.win_rate, key) for key in ("rate", "low", "high")}
            summary["pairs"][name] = rates | {"winner_mean": score.winner_mean, "loser_mean": score.loser_mean}
    return finite_or_none(summary)


def write_report(folder: epath.PathLike, report: ReportData) -> dict[str, Any]:
    """Write index.html, summary.json, grid.png, curves.png and pairs.png into `folder`; returns the summary.

    The same data gives the same bytes. A figure without data (no training log, no pairs) is left out.
    """
    path = epath.Path(folder)
    summary = summarize(report)
    write_text(path / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    hero = report.examples[:HERO_PAIRS]
    if hero:
        write_bytes(path / "grid.png", pictures.pair_grid(hero, *report.labels, report.headline))
    if charts.charts_with_data(report.training):
        write_bytes(path / "curves.png", charts.curves_figure(report.training))
    pairs = [
        *report.best_pairs[: HERO_PAIRS // 2],
        *report.worst_pairs[: HERO_PAIRS // 2],
    ]
    if pairs:
        write_bytes(path / "pairs.png", pictures.pair_grid(pairs, "Winner", "Loser", report.headline))
    write_text(path / "index.html", render_page(report))
    return summary


def render_page(report: ReportData) -> str:
    """The report as one HTML page that needs no other file."""
    environment = page_environment()
    environment.filters["score"] = format_score
    environment.filters["signed"] = lambda value, digits=2: signed(value, digits)
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    environment.filters["picture"] = lambda image: pictures.data_uri(image, PAGE_IMAGE_HEIGHT)
    drawn = [
        # The markup comes from matplotlib and fixed titles alone.
        (chart, markupsafe.Markup(charts.chart_svg(chart, report.training)))
        for chart in charts.charts_with_data(report.training)
    ]
    return environment.get_template("run_report.html.jinja").render(
        report=report,
        headline=report.scores[report.headline],
        hero=report.examples[:HERO_PAIRS],
        charts=drawn,
        settings=_flatten(report.settings),
        verdict=verdict,
    )


def verdict(win_rate: WinRate) -> str:
    """What the interval of a win rate allows to say."""
    if win_rate.low > 0.5:
        return "better"
    if win_rate.high < 0.5:
        return "worse"
    return "no difference shown"


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows.extend(_flatten(value, f"{prefix}{name}."))
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
