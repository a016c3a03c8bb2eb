"""Builds the joined report: the runs, and the paper's tables, figures and claims as far as there are runs for them."""

from collections.abc import Mapping, Sequence

from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.pages.joined.document import FAILS, HOLDS, UNDECIDED, Document
from hgdpo_jax.pages.joined.paper import TABLES
from hgdpo_jax.pages.joined.paper_figures import rank_sections, sweep_sections
from hgdpo_jax.pages.joined.paper_tables import missing_note, table_section
from hgdpo_jax.pages.joined.progress import Progress
from hgdpo_jax.pages.joined.run_tables import picture_sections, runs_section, training_sections
from hgdpo_jax.pages.joined.runs import Row, Run, is_seed, models_of, rows_of, training_differences
from hgdpo_jax.pages.numbers import counted, percent
from hgdpo_jax.pages.tables import interval

_NOTES = (
    "Win rate: the share of prompts on which the first model's mean score over its images is higher, ties counted "
    "half, with the Wilson 95 % interval. Drawing seeds and training seeds are averaged within the prompt first.",
    "The intervals are over prompts, for the LoRAs that were trained: they do not say how much another training seed "
    "would change. Of twenty comparisons without a difference one would still be decided, by chance.",
)
_CLAIMS = (
    "A claim holds at 95 % if the interval of the mean difference of scores, prompt by prompt (paired t), lies on the "
    "claimed side of zero, fails if it lies on the other side, and is undecided if it covers zero. The p-value beside "
    "the direct win rate is that of the two-sided sign test.",
    "Where a row has several training seeds, their range is shown.",
    "The paper's numbers come from its own model, prompts and scorers: compare the order of the rows, not the values.",
)


def build(runs: Sequence[Run], unfinished: Sequence[Progress] = ()) -> Document:
    """The report on runs that `read_runs` found comparable, one or more, and a list of those that are `unfinished`.

    Raises UserError where two runs of a row hold one LoRA.
    """
    rows, first = rows_of(runs), runs[0]
    tables = {number: table_section(number, first, rows) for number in TABLES}
    sections = [runs_section(runs, unfinished), *picture_sections(runs), *training_sections(runs)]
    sections += [section for section in tables.values() if section]
    sections += [*rank_sections(runs), *sweep_sections(runs)]
    cells = [cell for section in sections for table in section.tables for row in table.rows for cell in row]
    claims = {verdict: [cell.mark for cell in cells].count(verdict) for verdict in (HOLDS, FAILS, UNDECIDED)}
    prompts, seeds = first.base.scores[first.results.headline].shape
    return Document(
        title="Runs side by side",
        subtitle=f"{counted(len(runs), 'run')}, {counted(prompts, 'prompt')}, {counted(seeds, 'image')} each"
        + (f"; {counted(len(unfinished), 'more run')} not evaluated yet" if unfinished else ""),
        lead=" ".join([_best(runs), *([_verdict(claims)] if rows else [])]),
        claims=claims,
        sections=sections,
        notes=[*_NOTES, *_notes(runs, rows, [number for number in tables if not tables[number]])],
        settings=first.results.settings,
        attribution=" ".join(dict.fromkeys(run.results.attribution for run in runs)).strip(),
    )


def _best(runs: Sequence[Run]) -> str:
    """Which model has the highest win rate over the base by the headline score."""
    headline = runs[0].results.headline
    rates = {
        model.label: win_rate(model.results.scores[headline], model.run.base.scores[headline])
        for model in models_of(runs)
    }
    if not rates:
        return "No run compares another model with the base."
    best = max(rates, key=lambda label: rates[label].rate)
    rate, label = rates[best], runs[0].results.scores[headline].label
    return (
        f"By the {label}, {best} has the highest win rate over the base: {percent(rate.rate)} of "
        f"{counted(rate.prompts, 'prompt')} (95 % interval {interval(rate)}; {rate.wins:,} won, {rate.ties:,} tied, "
        f"{rate.losses:,} lost)."
    )


def _verdict(claims: Mapping[str, int]) -> str:
    total = sum(claims.values())
    if not total:
        return "No claim of the paper can be tested: that needs two rows of one of its tables."
    return (
        f"Of the {counted(total, 'comparison')} that the paper claims and these runs can test: "
        f"{claims[HOLDS]} hold, {claims[FAILS]} fail, {claims[UNDECIDED]} undecided."
    )


def _notes(runs: Sequence[Run], rows: Mapping[str, Row], absent: Sequence[int]) -> list[str]:
    """How to read the paper's tables, and what is left out of them; nothing where no run is a row of the paper."""
    if not rows:
        return []
    notes = [*_CLAIMS]
    if len({len(row.members) for row in rows.values()}) > 1:
        notes.append(
            "Rows have different numbers of training seeds. Means over more images vary less, so a win rate over the "
            "base lies further from 50 % for that alone: compare such rows by their ranges over seeds, or by the "
            "differences of scores."
        )
    for row in rows.values():
        found = training_differences([run for run, _ in row.members])
        if differing := [name for name in found if not is_seed(name)]:
            notes.append(f"The runs of {row.label} differ in more than their seed: {', '.join(differing)}.")
    for number in absent:
        notes.append(f"Table {number} is left out, because it needs two of its rows. {missing_note(number, rows)}")
    if not any(run.results.ranks for run in runs):
        notes.append("Figure 5b is left out: no run has statistics of its pool.")
    if not any(run.sweep for run in runs):
        notes.append("Figure 8 is left out: no run has done the stage sweep_scale.")
    return notes
