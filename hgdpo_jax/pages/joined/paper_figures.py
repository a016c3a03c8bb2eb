"""Figures 5b and 8: channel statistics by rank, and the scale of the LoRA."""

import math
from collections.abc import Sequence

from hgdpo_jax.evaluation.comparison import Comparison, compare
from hgdpo_jax.evaluation.rank_statistics import RankStatistics
from hgdpo_jax.evaluation.results import Results
from hgdpo_jax.pages.charts import Curves, Series
from hgdpo_jax.pages.joined import paper
from hgdpo_jax.pages.joined.document import ImageGrid, Section
from hgdpo_jax.pages.joined.runs import Run
from hgdpo_jax.pages.numbers import counted, format_score, percent, plain, signed
from hgdpo_jax.pages.tables import Cell, Table, interval, mean_of, number_cell


def rank_section(runs: Sequence[Run]) -> Section:
    """Fig. 5b of the largest pool that a run chose its pairs from."""
    found = [(run, run.results.ranks) for run in runs if run.results.ranks]
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
            ranks.mean_distance,
            ranks.mean_distance_error,
            ranks.deviation_distance,
            ranks.deviation_distance_error,
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


def _growth(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Last value less the first, and its standard error; both are of the same pools, so it errs on the wide side."""
    return values[-1] - values[0], math.hypot(errors[0], errors[-1])


def _band(values: Sequence[float], errors: Sequence[float]) -> tuple[list[float], ...]:
    both = list(zip(values, errors, strict=True))
    return list(values), [value - 2 * error for value, error in both], [value + 2 * error for value, error in both]


def _error_cell(value: float, error: float) -> Cell:
    return Cell(plain(value), f"± {plain(error, 2)}", {"distance": value, "error": error})


def sweep_sections(runs: Sequence[Run]) -> list[Section]:
    """Fig. 8, one section for each experiment whose LoRA was drawn at several scales."""
    by_row: dict[str, list[Run]] = {}
    for run in runs:
        if run.sweep:
            by_row.setdefault(run.row, []).append(run)
    return [_sweep_section(paper.ROW_LABELS.get(name, name), members) for name, members in by_row.items()]


def _sweep_section(label: str, runs: Sequence[Run]) -> Section:
    sweeps = [_by_scale(run.sweep) for run in runs if run.sweep]
    # Of every scale that all of them have the comparisons of all training seeds.
    columns = {scale: [each[scale] for each in sweeps] for scale in sweeps[0] if all(scale in each for each in sweeps)}
    first, folder = runs[0].sweep, runs[0].sweep_folder
    assert first
    scales, compared = list(columns), list(columns.values())
    rates = []
    for name, about in first.scores.items():
        bounds: tuple[list[float], ...] = ()
        if name == first.headline and len(sweeps) == 1:
            found = [points[0].scores[name].win_rate for points in compared]
            bounds = ([rate.low for rate in found], [rate.high for rate in found])
        rates.append(Series(about.label, scales, [_mean_rate(name, points) for points in compared], *bounds))
    head = first.scores[first.headline].label
    means = Series(head, scales, [_mean_score(first.headline, points) for points in compared])
    charts = [
        Curves("Win rate", "Over the base.", "LoRA scale", rates, level=0.5, percent=True),
        Curves("Mean score", f"By {head}.", "LoRA scale", [means]),
    ]
    diversities = [[point.diversity for point in points if point.diversity is not None] for points in compared]
    if all(diversities):
        series = Series("diversity", scales, [mean_of(values) for values in diversities])
        note = "Mean cosine distance of a prompt's image embeddings."
        charts.append(Curves("Diversity", note, "LoRA scale", [series]))
    cells = [
        [
            Cell(f"{scale:g}", values={"scale": scale}),
            *(_sweep_cell(name, points) for name in first.scores),
            *(number_cell(name, [point.measures[name].tuned.mean for point in points]) for name in first.measures),
            number_cell("diversity", values),
        ]
        for (scale, points), values in zip(columns.items(), diversities, strict=True)
    ]
    named = [*first.scores.values(), *first.measures.values()]
    heads = ["LoRA scale", *(about.label for about in named), "Diversity"]
    notes = [f"Means over {len(sweeps)} training seeds."] if len(sweeps) > 1 else []
    pictures = {f"{model.scale:g}": model.pictures for model in first.models.values() if model.pictures}
    rows = list(zip(*pictures.values(), strict=True))
    if rows:
        notes.append(f"Images of the run {runs[0].name}, one column a scale.")
    return Section(
        f"Figure 8: Scale of the LoRA, {label}",
        [Table("Figures by scale", heads, cells, folded=True)],
        charts,
        notes=notes,
        grid=ImageGrid(list(pictures), first.prompts[: len(rows)], [[folder / name for name in row] for row in rows]),
    )


def _by_scale(sweep: Results) -> dict[float, Comparison]:
    """Each scale of the LoRA against the base, which comes first."""
    base, *tuned = sweep.models.values()
    return {model.scale: compare(sweep, base, model) for model in tuned}


def _sweep_cell(name: str, points: Sequence[Comparison]) -> Cell:
    """The win rate of one scale, with its interval where there is one training seed, and the mean score."""
    rate, mean = _mean_rate(name, points), _mean_score(name, points)
    detail = f"mean {format_score(mean)}"
    if len(points) == 1:
        detail = f"{interval(points[0].scores[name].win_rate)}; {detail}"
    return Cell(percent(rate), detail, {"rate": rate, "mean": mean})


def _mean_rate(name: str, points: Sequence[Comparison]) -> float:
    return mean_of([point.scores[name].win_rate.rate for point in points])


def _mean_score(name: str, points: Sequence[Comparison]) -> float:
    return mean_of([point.scores[name].tuned_mean for point in points])
