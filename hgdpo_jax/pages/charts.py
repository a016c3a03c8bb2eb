"""Charts: curves of a training, and of results, as SVG for a page or as PNG."""

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence

import markupsafe
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hgdpo_jax import objectives
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


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: values over places on the x axis, and where known their lower and upper bounds; NaN where none is."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Curves:
    """What a chart of results shows: titles, curves, a level to mark; `log_x` marks the places of the first curve."""

    title: str
    note: str
    x_label: str
    series: Sequence[Series]
    level: float | None = None
    percent: bool = False
    log_x: bool = False


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
        {
            "validation_hue_shift": "hue",
            "validation_saturation_shift": "saturation",
            "validation_value_shift": "value",
        },
        0.0,
    ),
)


def _charts() -> list[Chart]:
    of_objectives = [chart for name in objectives.names() for chart in objectives.find(name).charts]
    return list({chart.title: chart for chart in (*of_objectives, *_GENERAL)}.values())


def charts_with_data(log: Sequence[Mapping[str, float]]) -> list[Chart]:
    """The charts whose first series has at least one value in the log, one mapping of scalars a step."""
    return [chart for chart in _charts() if len(_series(log, next(iter(chart.series)))[0])]


def chart_svg(chart: Chart, log: Sequence[Mapping[str, float]]) -> markupsafe.Markup:
    """One chart as SVG to inline, its colours CSS variables named as in PALETTE."""
    return _inline_svg(lambda axes: _draw_chart(axes, chart, log), salt=chart.title)


def curves_svg(curves: Curves, salt: str) -> markupsafe.Markup:
    """As `chart_svg`; charts of one page need different salts."""
    return _inline_svg(lambda axes: _draw_curves(axes, curves), salt)


def _inline_svg(draw: Callable[[Axes], None], salt: str) -> markupsafe.Markup:
    """What `draw` puts into axes, as markup whose identifiers differ from salt to salt."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure = Figure(figsize=(3.4, 2.2), layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        # Without metadata there is no date and no address in the file.
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    markup = stream.getvalue()
    markup = markup[markup.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', markup)
    assert view_box is not None
    markup = re.sub(r"<svg[^>]*>", f'<svg {view_box.group()} role="img">', markup, count=1)
    # Group names repeat from chart to chart; an HTML page needs each id once, and these are not referred to.
    markup = re.sub(r'<g id="[\w.]+"', "<g", markup)
    for name, color in PALETTE.items():
        markup = markup.replace(color, f"var(--{name})")
    # It comes from matplotlib, which escapes what is written in it.
    return markupsafe.Markup(markup)


def curves_figure(log: Sequence[Mapping[str, float]]) -> bytes:
    """All charts that have data as one PNG."""
    charts = charts_with_data(log)
    columns = min(3, max(1, len(charts)))
    rows = max(1, -(-len(charts) // columns))
    figure = Figure(figsize=(3.7 * columns, 2.6 * rows), layout="constrained")
    for index, chart in enumerate(charts):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_chart(axes, chart, log)
        # The legend has the line below the title.
        axes.set_title(chart.title, loc="left", fontsize=10, color=PALETTE["ink"], weight="bold", y=1, pad=20)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _series(log: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one series; the error changes are differences of two logged ones."""
    if key.endswith("_error_change"):
        side = key.removesuffix("_error_change")
        policy, reference = f"policy_{side}_error", f"reference_{side}_error"
        points = [
            (line["step"], line[policy] - line[reference]) for line in log if policy in line and reference in line
        ]
    else:
        points = [(line["step"], line[key]) for line in log if key in line]
    points = [(step, value) for step, value in points if np.isfinite(value)]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the ones within half a window of it; shorter at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    center = np.arange(len(values))
    first, last = (
        np.maximum(center - window // 2, 0),
        np.minimum(center + window // 2 + 1, len(values)),
    )
    return (sums[last] - sums[first]) / (last - first)


def _draw_chart(axes: Axes, chart: Chart, log: Sequence[Mapping[str, float]]) -> None:
    _draw_level(axes, chart.level, chart.percent)
    for index, (key, label) in enumerate(chart.series.items()):
        steps, values = _series(log, key)
        if not len(steps):
            continue
        values = 100 * values if chart.percent else values
        is_reference = key.startswith("reference_")
        color = PALETTE["ink" if is_reference else f"series-{index + 1}"]
        smooth = _running_mean(values, len(values) // 20)
        if key.startswith("validation_"):
            axes.plot(steps, values, color=color, label=label, linewidth=1.6, marker="o", markersize=3.5)
        elif is_reference:
            axes.plot(steps, smooth, color=color, linewidth=0.9, linestyle=(0, (2, 3)))
        else:
            # One step sees few pairs: the line is a running mean, the values themselves stay in the background.
            axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.2)
            axes.plot(steps, smooth, color=color, label=label, linewidth=1.6)
    _style(axes, "step", chart.percent)


def _draw_curves(axes: Axes, curves: Curves) -> None:
    _draw_level(axes, curves.level, curves.percent)
    factor = 100 if curves.percent else 1
    for index, series in enumerate(curves.series):
        color = PALETTE[f"series-{index % 4 + 1}"]
        # Beyond four curves the colours come again, dashed.
        style = "-" if index < 4 else "--"
        if len(series.low):
            low, high = factor * np.asarray(series.low), factor * np.asarray(series.high)
            axes.fill_between(series.x, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(
            series.x,
            factor * np.asarray(series.y),
            style,
            color=color,
            label=series.label,
            linewidth=1.6,
            marker="o",
            markersize=3,
        )
    if curves.log_x:
        axes.set_xscale("log")
        places = curves.series[0].x
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        axes.minorticks_off()
    elif all(float(place).is_integer() for series in curves.series for place in series.x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _style(axes, curves.x_label, curves.percent)


def _draw_level(axes: Axes, level: float | None, percent: bool) -> None:
    if level is not None:
        axes.axhline(100 * level if percent else level, color=PALETTE["muted"], linewidth=1, linestyle=":")


def _style(axes: Axes, x_label: str, percent: bool) -> None:
    axes.set_xlabel(x_label, fontsize=8, color=PALETTE["muted"])
    axes.tick_params(labelsize=8, colors=PALETTE["muted"], length=0)
    axes.grid(axis="y", color=PALETTE["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["line"])
    axes.margins(x=0.02)
    if percent:
        axes.yaxis.set_major_formatter("{x:.0f} %")
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
