"""Charts: curves of a training, and of results, as SVG for a page or as PNG."""

import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hgdpo_jax import objectives
from hgdpo_jax.evaluation.color_shift import CHANNELS
from hgdpo_jax.objectives import Chart

# Colours of the figures; the report replaces each by its CSS variable, so that inlined curves follow the dark mode.
PALETTE = {
    "ink": "#23262b",
    "muted": "#6b7078",
    "line": "#dfe1e5",
    "series-1": "#0f766e",
    "series-2": "#c2410c",
    "series-3": "#4f46e5",
    "series-4": "#a16207",
}


# How a curve is drawn: with a marker at each value; as a running mean, with the noisy values in the background; or as
# the running mean alone, of what the other curves are compared with.
POINTS, SMOOTHED, REFERENCE = "points", "smoothed", "reference"
_LOOKS: dict[str, dict[str, Any]] = {
    POINTS: {"marker": "o", "markersize": 3},
    SMOOTHED: {},
    REFERENCE: {"color": PALETTE["ink"], "label": "", "linewidth": 0.9, "linestyle": (0, (2, 3))},
}


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: values over places on the x axis, and where known their lower and upper bounds."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: str = POINTS


@dataclasses.dataclass(frozen=True)
class Curves:
    """A chart: titles, curves, a level and a place to mark; `log_x` marks the places of the first curve."""

    title: str
    note: str
    x_label: str
    series: Sequence[Series]
    level: float | None = None
    percent: bool = False
    log_x: bool = False
    mark: float | None = None


# Of every training.
_GENERAL = (
    Chart("Gradient norm", "Before clipping.", {"gradient_norm": "LoRA gradient"}),
    Chart(
        "Validation win rate",
        "Over the base, by the training scorer.",
        {"validation_win_rate": "validation prompts"},
        0.5,
        percent=True,
    ),
    Chart(
        "Validation colour shift",
        "Per cent of the base.",
        {f"validation_{channel}_shift": channel for channel in CHANNELS},
        0.0,
    ),
)


def training_curves(log: Sequence[Mapping[str, float]], mark: int | None = None) -> list[Curves]:
    """The charts whose first series has at least one value in the log, one mapping of scalars per step.

    `mark` is a step to mark.
    """
    of_objectives = [chart for name in objectives.names() for chart in objectives.find(name).charts]
    # Objectives share charts.
    charts = {chart.title: chart for chart in (*of_objectives, *_GENERAL)}
    found = []
    for chart in charts.values():
        series = [_series(log, key, label) for key, label in chart.series.items()]
        if series[0].x:
            shown = [each for each in series if each.x]
            found.append(Curves(chart.title, chart.note, "step", shown, chart.level, chart.percent, mark=mark))
    return found


def _series(log: Sequence[Mapping[str, float]], key: str, label: str) -> Series:
    """The finite values of a key; the error changes are differences of two logged ones."""

    def value(line: Mapping[str, float]) -> float:
        if key.endswith("_error_change"):
            error = key.removesuffix("_change")
            return line.get(f"policy_{error}", math.nan) - line.get(f"reference_{error}", math.nan)
        return line.get(key, math.nan)

    points = [(line["step"], value(line)) for line in log if math.isfinite(value(line))]
    style = POINTS if key.startswith("validation_") else REFERENCE if key.startswith("reference_") else SMOOTHED
    return Series(label, [step for step, _ in points], [value for _, value in points], style=style)


def curves_svg(curves: Curves, salt: str) -> markupsafe.Markup:
    """A chart as SVG to inline, in CSS variables named as in PALETTE; the charts of one page need different salts."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure = Figure(figsize=(3.4, 2.2), layout="constrained")
        _draw(figure.add_subplot(), curves)
        stream = io.StringIO()
        # Without metadata there is no date and no address in the file.
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    # Of the head only the view box: the page decides the size.
    head = f'<svg \\1 role="img" aria-label="{markupsafe.escape(f"Chart: {curves.title}")}">'
    markup = re.sub(r'^.*?<svg[^>]*(viewBox="[^"]*")[^>]*>', head, stream.getvalue(), flags=re.DOTALL)
    # Group names repeat from chart to chart; an HTML page needs each id once, and these are not referred to.
    markup = re.sub(r'<g id="[\w.]+"', "<g", markup)
    for name, color in PALETTE.items():
        markup = markup.replace(color, f"var(--{name})")
    # It comes from matplotlib, which escapes what is written in it.
    return markupsafe.Markup(markup)


def curves_figure(charts: Sequence[Curves]) -> bytes:
    """All charts as one PNG; there must be one."""
    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(3.7 * columns, 2.6 * rows), layout="constrained")
    for index, curves in enumerate(charts):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw(axes, curves)
        # The legend has the line below the title.
        axes.set_title(curves.title, loc="left", fontsize=10, color=PALETTE["ink"], weight="bold", y=1, pad=20)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _running_mean(values: Sequence[float]) -> np.ndarray:
    """Mean of each value and those near it, over a twentieth of all values; over fewer at both ends."""
    half = len(values) // 20 // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    center = np.arange(len(values))
    first, last = np.maximum(center - half, 0), np.minimum(center + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _draw(axes: Axes, curves: Curves) -> None:
    if curves.level is not None:
        axes.axhline(curves.level, color=PALETTE["muted"], linewidth=1, linestyle=":")
    if curves.mark is not None:
        axes.axvline(curves.mark, color=PALETTE["ink"], linewidth=0.8, alpha=0.6)
        axes.plot(
            [curves.mark],
            [0],
            "^",
            color=PALETTE["ink"],
            markersize=5,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
    overlapping = sum(series.style == SMOOTHED for series in curves.series) > 1
    for index, series in enumerate(curves.series):
        color = PALETTE[f"series-{index % 4 + 1}"]
        if series.low:
            axes.fill_between(series.x, series.low, series.high, color=color, alpha=0.18, linewidth=0)
        if series.style == SMOOTHED:
            axes.plot(series.x, series.y, color=color, linewidth=0.7, alpha=0.2)
        # Beyond four curves, colours repeat with dashed lines.
        look: dict[str, Any] = {
            "color": color,
            "label": series.label,
            "linewidth": 1.6,
            "linestyle": "-" if index < 4 else "--",
        }
        if overlapping and not index:
            # A loss and its main term may coincide: the others run inside the first one.
            look |= {"linewidth": 5, "alpha": 0.45}
        values = series.y if series.style == POINTS else _running_mean(series.y)
        axes.plot(series.x, values, **look | _LOOKS[series.style])
    if curves.log_x:
        axes.set_xscale("log")
        places = curves.series[0].x
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        axes.minorticks_off()
    elif all(float(place).is_integer() for series in curves.series for place in series.x):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    _style(axes, curves.x_label, curves.percent)


def _style(axes: Axes, x_label: str, percent: bool) -> None:
    axes.set_xlabel(x_label, fontsize=8, color=PALETTE["muted"])
    axes.tick_params(labelsize=8, colors=PALETTE["muted"], length=0)
    axes.grid(axis="y", color=PALETTE["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["line"])
    axes.margins(x=0.02)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    labels = axes.get_legend_handles_labels()[1]
    if len(labels) > 1:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 0.98),
            # Three long names do not fit side by side.
            ncols=3 if len("".join(labels[:3])) < 36 else 2,
            fontsize=8,
            frameon=False,
            labelcolor=PALETTE["muted"],
            handlelength=1,
            columnspacing=1,
            borderaxespad=0,
        )
