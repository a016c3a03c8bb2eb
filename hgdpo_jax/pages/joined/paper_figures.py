"""Figures 5b and 8: channel statistics by rank, and the weight of the LoRA."""

import math
from collections.abc import Sequence

import numpy as np

from hgdpo_jax.pages.charts import Curves, Series
from hgdpo_jax.pages.joined import paper
from hgdpo_jax.pages.joined.cells import counted, mean_of, number_cell, percent, plain, span
from hgdpo_jax.pages.joined.document import Cell, ImageGrid, Section, Table
from hgdpo_jax.pages.joined.runs import RankStatistics, Run, ScalePoint
from hgdpo_jax.pages.numbers import format_score, signed


def rank_section(runs: Sequence[Run]) -> Section:
    """Fig. 5b of the largest pool that a run chose its pairs from."""
    found = [(run, run.rank_statistics) for run in runs if run.rank_statistics]
    run, ranks = max(found, key=lambda pair: (len(pair[1].ranks), pair[1].prompts))
    curves = [
        Series("means", ranks.ranks, *_band(ranks.mean_distance, ranks.mean_distance_error)),
        Series("standard deviations", ranks.ranks, *_band(ranks.deviation_distance, ranks.deviation_distance_error)),
    ]
    chart = Curves(
        "Distance to the best image",
        "Cosine distance of the latents' channel statistics, with two standard errors.",
        "rank in the pool",
        curves,
    )
    cells = [
        [Cell(str(rank), values={"rank": rank}), _error_cell(mean, error), _error_cell(deviation, deviation_error)]
        for rank, mean, error, deviation, deviation_error in zip(
            ranks.ranks,
            ranks.mean_distance.tolist(),
            ranks.mean_distance_error.tolist(),
            ranks.deviation_distance.tolist(),
            ranks.deviation_distance_error.tolist(),
            strict=True,
        )
    ]
    table = Table("Distance by rank", ["Rank", "Channel means", "Standard deviations"], cells, folded=True)
    return Section(
        "Figure 5b: Channel statistics by rank",
        [table],
        [chart],
        lead=rank_verdict(ranks),
        notes=[f"Pools of {counted(ranks.prompts, 'prompt')}, those of the run {run.name}. ± is a standard error."],
    )


def rank_verdict(ranks: RankStatistics) -> str:
    """Whether winners and losers differ in their channel means, beyond two standard errors, in a sentence or two."""
    if len(ranks.ranks) < 2 or ranks.prompts < 2:
        return "To tell whether winners and losers differ in their channel means takes pools of three images or more."
    last = ranks.ranks[-1]
    growth, error = _growth(ranks.mean_distance, ranks.mean_distance_error)
    other, other_error = _growth(ranks.deviation_distance, ranks.deviation_distance_error)
    change = (
        f"between rank {ranks.ranks[0]} and rank {last} the distance of the channel means changes by "
        f"{signed(growth)} ± {plain(error, 2)}, that of the standard deviations by {signed(other)} ± "
        f"{plain(other_error, 2)}"
    )
    if not growth > 2 * error:
        return (
            f"Winners and losers do not differ in their channel means, so there is no colour shift to cure: {change}, "
            "and the former is no growth beyond two standard errors."
        )
    more = growth - other > 2 * math.hypot(error, other_error)
    return (
        f"Winners and losers differ in their channel means: {change}. The means drift apart "
        f"{'more than' if more else 'no more than'} the deviations{', as in the paper' if more else ''}."
    )


def _growth(values: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Last value less the first, and its standard error; both are of the same pools, so it errs on the wide side."""
    return float(values[-1] - values[0]), math.hypot(errors[0], errors[-1])


def _band(values: np.ndarray, errors: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    return values.tolist(), (values - 2 * errors).tolist(), (values + 2 * errors).tolist()


def _error_cell(value: float, error: float) -> Cell:
    return Cell(plain(value), f"± {plain(error, 2)}", {"distance": value, "error": error})


def sweep_sections(runs: Sequence[Run]) -> list[Section]:
    """Fig. 8, one section for each experiment whose LoRA was drawn at several weights."""
    by_row: dict[str, list[Run]] = {}
    for run in runs:
        if run.sweep:
            by_row.setdefault(run.row, []).append(run)
    return [_sweep_section(paper.ROW_LABELS.get(name, name), members) for name, members in by_row.items()]


def _sweep_section(label: str, runs: Sequence[Run]) -> Section:
    sweeps = [run.sweep for run in runs if run.sweep]
    first, scores = sweeps[0], runs[0].scores
    scales = [p.scale for p in first.points if all(p.scale in [q.scale for q in sweep.points] for sweep in sweeps)]
    # Of every weight the points of all training seeds.
    columns = [[p for sweep in sweeps for p in sweep.points if p.scale == scale] for scale in scales]
    rates = []
    for name, score in scores.items():
        bounds: tuple[list[float], ...] = ()
        if name == first.headline and len(sweeps) == 1:
            bounds = tuple([points[0].win_rates[name][side] for points in columns] for side in (1, 2))
        rates.append(Series(score.label, scales, [_mean_rate(name, points) for points in columns], *bounds))
    head = scores[first.headline].label
    means = Series(head, scales, [_mean_score(first.headline, points) for points in columns])
    charts = [
        Curves("Win rate", "Over the base.", "LoRA weight", rates, level=0.5, percent=True),
        Curves("Mean score", f"By {head}.", "LoRA weight", [means]),
    ]
    diversities = [[p.diversity for p in points if p.diversity is not None] for points in columns]
    if all(diversities):
        series = Series("diversity", scales, [mean_of(values) for values in diversities])
        note = "Mean cosine distance of a prompt's image embeddings."
        charts.append(Curves("Diversity", note, "LoRA weight", [series]))
    cells = [
        [
            Cell(f"{scale:g}", values={"scale": scale}),
            *(_sweep_cell(name, points) for name in scores),
            number_cell("diversity", values),
        ]
        for scale, points, values in zip(scales, columns, diversities, strict=True)
    ]
    heads = ["LoRA weight", *(score.label for score in scores.values()), "Diversity"]
    notes = [f"Means over {len(sweeps)} training seeds."] if len(sweeps) > 1 else []
    grid = None
    if first.images:
        grid = ImageGrid([f"{scale:g}" for scale in first.grid_scales], first.grid_prompts, first.images)
        notes.append(f"Images of the run {runs[0].name}, one column a weight.")
    return Section(
        f"Figure 8: Weight of the LoRA, {label}",
        [Table("Figures by weight", heads, cells, folded=True)],
        charts,
        notes=notes,
        grid=grid,
    )


def _sweep_cell(name: str, points: Sequence[ScalePoint]) -> Cell:
    """The win rate of one weight, with its interval where there is one training seed, and the mean score."""
    rate, mean = _mean_rate(name, points), _mean_score(name, points)
    detail = f"mean {format_score(mean)}"
    if len(points) == 1:
        _, low, high = points[0].win_rates[name]
        detail = f"{span(low, high)}; {detail}"
    return Cell(percent(rate), detail, {"rate": rate, "mean": mean})


def _mean_rate(name: str, points: Sequence[ScalePoint]) -> float:
    return mean_of([point.win_rates[name][0] for point in points])


def _mean_score(name: str, points: Sequence[ScalePoint]) -> float:
    return mean_of([point.means[name] for point in points])
