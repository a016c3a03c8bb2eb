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


def rank_sections(runs: Sequence[Run]) -> list[Section]:
    """Fig. 5b of the largest pool that a run chose its pairs from, if one did."""
    found = [(run, run.results.ranks) for run in runs if run.results.ranks]
    if not found:
        return []
    run, ranks = max(found, key=lambda pair: (len(pair[1].ranks), pair[1].prompts))
    curves, columns = [], [[Cell(str(rank), values={"rank": rank}) for rank in ranks.ranks]]
    for label, values, errors in (
        ("means", ranks.mean_distance, ranks.mean_distance_error),
        ("standard deviations", ranks.deviation_distance, ranks.deviation_distance_error),
    ):
        both = list(zip(values, errors, strict=True))
        low, high = ([value + side * error for value, error in both] for side in (-2, 2))
        curves.append(Series(label, ranks.ranks, values, low, high))
        columns.append(
            [Cell(plain(value), f"± {plain(error, 2)}", {"distance": value, "error": error}) for value, error in both]
        )
    heads, rows = ["Rank", "Channel means", "Standard deviations"], list(zip(*columns, strict=True))
    note = "Cosine distance of the latents' channel statistics, with two standard errors."
    section = Section(
        "Figure 5b: Channel statistics by rank",
        lead=rank_verdict(ranks),
        notes=[f"Pools of {counted(ranks.prompts, 'prompt')}, those of the run {run.name}. ± is a standard error."],
        tables=[Table("Distance by rank", heads, rows, folded=True)],
        charts=[Curves("Distance to the best image", note, "rank in the pool", curves)],
    )
    return [section]


def rank_verdict(ranks: RankStatistics) -> str:
    """Whether winners and losers differ in their channel means, beyond two standard errors, in a sentence or two."""
    if len(ranks.ranks) < 2 or ranks.prompts < 2:
        return "Only pools of three images or more show whether winners and losers differ in their channel means."
    growth, error = _growth(ranks.mean_distance, ranks.mean_distance_error)
    other, other_error = _growth(ranks.deviation_distance, ranks.deviation_distance_error)
    change = (
        f"between rank {ranks.ranks[0]} and rank {ranks.ranks[-1]} the distance of the channel means changes by "
        f"{signed(growth)} ± {plain(error, 2)}, that of the standard deviations by {signed(other)} ± "
        f"{plain(other_error, 2)}"
    )
    if not growth > 2 * error:
        return (
            f"Winners and losers do not differ in their channel means, so there is no colour shift to cure: {change}, "
            "and the former does not exceed two standard errors."
        )
    more = growth - other > 2 * math.hypot(error, other_error)
    return (
        f"Winners and losers differ in their channel means: {change}. The means drift apart "
        f"{'more than' if more else 'no more than'} the deviations{', as in the paper' if more else ''}."
    )


def _growth(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Last value less the first, and its standard error; both are of the same pools, so it errs on the wide side."""
    return values[-1] - values[0], math.hypot(errors[0], errors[-1])


def sweep_sections(runs: Sequence[Run]) -> list[Section]:
    """Fig. 8, one section for each experiment whose LoRA was drawn at several scales."""
    by_row: dict[str, list[Run]] = {}
    for run in runs:
        if run.sweep:
            by_row.setdefault(run.row, []).append(run)
    return [_sweep_section(paper.ROW_LABELS.get(name, name), members) for name, members in by_row.items()]


def _sweep_section(label: str, runs: Sequence[Run]) -> Section:
    """Means over the training seeds `runs`, at the scales that all of them have."""
    sweeps = [_by_scale(run.sweep) for run in runs if run.sweep]
    first, folder = runs[0].sweep, runs[0].sweep_folder
    assert first
    scales = [scale for scale in sweeps[0] if all(scale in each for each in sweeps)]
    compared = [[each[scale] for each in sweeps] for scale in scales]
    columns = [[Cell(f"{scale:g}", values={"scale": scale}) for scale in scales]]
    rates, means = [], {}
    for name, about in first.scores.items():
        found = [[point.scores[name] for point in points] for points in compared]
        rate = [mean_of([score.win_rate.rate for score in scores]) for scores in found]
        means[name] = [mean_of([score.tuned_mean for score in scores]) for scores in found]
        # Of several training seeds together there is no interval.
        alone = [scores[0].win_rate for scores in found] if len(sweeps) == 1 else []
        intervals = [f"{interval(each)}; " for each in alone] or [""] * len(scales)
        columns.append(
            [
                Cell(percent(share), f"{before}mean {format_score(mean)}", {"rate": share, "mean": mean})
                for share, before, mean in zip(rate, intervals, means[name], strict=True)
            ]
        )
        shown = alone if name == first.headline else []
        rates.append(Series(about.label, scales, rate, [each.low for each in shown], [each.high for each in shown]))
    columns += [
        [number_cell(name, [point.measures[name].tuned.mean for point in points]) for points in compared]
        for name in first.measures
    ]
    diversities = [number_cell("diversity", [point.diversity for point in points]) for points in compared]
    head = first.scores[first.headline].label
    charts = [
        Curves("Win rate", "Over the base.", "LoRA scale", rates, level=0.5, percent=True),
        Curves("Mean score", f"By {head}.", "LoRA scale", [Series(head, scales, means[first.headline])]),
    ]
    if all(cell.values["diversity"] is not None for cell in diversities):
        note = "Mean cosine distance of a prompt's image embeddings."
        series = Series("diversity", scales, [cell.values["diversity"] for cell in diversities])
        charts.append(Curves("Diversity", note, "LoRA scale", [series]))
    heads = ["LoRA scale", *(about.label for about in (*first.scores.values(), *first.measures.values())), "Diversity"]
    notes = [f"Means over {len(sweeps)} training seeds."] if len(sweeps) > 1 else []
    pictures = {f"scale {model.scale:g}": model.pictures for model in first.models.values() if model.pictures}
    images = [[folder / name for name in row] for row in zip(*pictures.values(), strict=True)]
    return Section(
        f"Figure 8: Scale of the LoRA, {label}",
        notes=[*notes, *([f"Images of the run {runs[0].name}, one column per scale."] if images else [])],
        tables=[Table("Figures by scale", heads, list(zip(*columns, diversities, strict=True)), folded=True)],
        charts=charts,
        grid=ImageGrid(list(pictures), first.prompts[: len(images)], images),
    )


def _by_scale(sweep: Results) -> dict[float, Comparison]:
    """Each scale of the LoRA against the base, which comes first."""
    base, *tuned = sweep.models.values()
    return {model.scale: compare(sweep, base, model) for model in tuned}
