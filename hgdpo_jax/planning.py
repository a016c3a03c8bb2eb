"""What the stages of an experiment would do, what is missing for it, and what it takes; computes and writes nothing."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from hgdpo_jax.artifacts import StageRun, refuse_changes
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.compilation import divide_cpu
from hgdpo_jax.config_files import checked
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.models import base_shapes, check_base
from hgdpo_jax.experiment.rates import Rate, rate_of
from hgdpo_jax.experiment.work import TRAINING, stored_bytes, work
from hgdpo_jax.pages.numbers import DASH, duration, size
from hgdpo_jax.pages.tables import aligned
from hgdpo_jax.pages.templates import render_text
from hgdpo_jax.runner import (
    Stage,
    check_stages,
    checked_arguments,
    load_stages,
    missing_settings,
    require_inputs,
    stage_run,
)
from hgdpo_jax.stages import load_stage, needs_of

# Programs whose rates serve for a part of a stage, the best first.
_LIKE = {
    ("check_pairs", "score_pool"): ("check_pairs", "score_pool"),
    ("evaluate_policy", "score_pool"): ("measure", "score_pool"),
    ("sweep_scale", "score_pool"): ("measure", "score_pool"),
    ("evaluate_policy", "evaluate_policy"): ("evaluate_policy", "generate_pool"),
    ("sweep_scale", "evaluate_policy"): ("evaluate_policy", "generate_pool"),
    ("sample_images", "evaluate_policy"): ("evaluate_policy", "generate_pool"),
}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A stage: its state ("done", "partly done", "to do" or "other settings"), and in words what it does.

    `needs` are the empty settings that it needs. `images`, `hours` and `stored`, in bytes, are those left, or of the
    whole stage where it does not say what is left; the hours are None where no rate is known.
    """

    name: str
    state: str
    cost: str
    needs: Sequence[str] = ()
    images: int = 0
    hours: float | None = 0.0
    stored: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of an experiment as they stand, how its images are drawn, and where the hours are known from.

    As text it is a table for people.
    """

    stages: Sequence[Planned]
    drawing: str
    sources: Sequence[str]

    @functools.cached_property
    def missing(self) -> list[str]:
        """The empty settings that the stages need."""
        return list(dict.fromkeys(name for stage in self.stages for name in stage.needs))

    def __str__(self) -> str:
        known = [stage.hours for stage in self.stages if stage.hours is not None]
        least = "at least " if known and len(known) < len(self.stages) and sum(known) else ""
        rows = [["stage", "state", "images", "time", "on disk", ""]]
        rows += [
            [each.name, each.state, _count(each.images), _hours(each.hours), _size(each.stored), each.cost]
            for each in self.stages
        ]
        total = sum(known) if known and (sum(known) or len(known) == len(self.stages)) else None
        # Images are not added up: most stages read those of others.
        rows.append(["in all", "", "", f"{least}{_hours(total)}", _size(sum(each.stored for each in self.stages)), ""])
        return render_text("plan.txt.jinja", str, plan=self, lines=aligned(rows))


def plan(config: ConfigDict, workdir: epath.PathLike = "workdir", stages: Sequence[str] = ()) -> Plan:
    """The stages of an experiment, or those named, as they stand.

    Raises UserError where the run would be refused, as far as this is known without computing.
    """
    experiment = checked(config)
    folder, names = checked_arguments(experiment, workdir, stages)
    divide_cpu(experiment.cpu_devices)
    needs = missing_settings(experiment, names)
    ready = [name for name in names if name not in needs]
    undone = [name for name in ready if not stage_run(experiment, name, folder).is_done()]
    # Before weights are hashed, which takes a while.
    check_stages(experiment, undone)
    loaded = {stage.run.name: stage for stage in load_stages(experiment, ready, folder)}
    ahead = [stage for name, stage in loaded.items() if name in undone]
    require_inputs(ahead)
    # The states of the named stages say so themselves.
    refuse_changes([run for stage in ahead for name, run in stage.run.inputs.items() if name not in names])
    # Of finished stages the weights may be gone.
    loads_base = experiment.weights.base and any(
        "weights.base" in needs_of(load_stage(name), experiment) for name in undone
    )
    base = check_base(experiment) if loads_base else base_shapes(experiment)
    rows, stored, sources = work(experiment, names), stored_bytes(experiment, base, names), dict[str, None]()
    planned = []
    for name in names:
        programs = {program: count for (part, program), count in rows.items() if part.partition(":")[0] == name}
        if name in needs:
            planned.append(_without_settings(experiment, name, needs[name], programs, stored.get(name, 0)))
        else:
            planned.append(_planned(experiment, loaded[name], programs, stored.get(name, 0), sources))
    drawing = f"{experiment.pool.steps} steps of DPM-Solver++; {base.schedule}"
    return Plan(planned, drawing, list(sources))


def _without_settings(
    experiment: Experiment, name: str, needs: Sequence[str], programs: Mapping[str, int], stored: int
) -> Planned:
    """A stage that needs empty settings, so that its state is not known."""
    words = ""
    with contextlib.suppress(UserError):
        words = load_stage(name).plan(experiment, stage_run(experiment, name, epath.Path()))
    return Planned(name, "to do", words, needs, _images(programs), None, stored)


def _planned(
    experiment: Experiment, stage: Stage, programs: Mapping[str, int], stored: int, sources: dict[str, None]
) -> Planned:
    """A stage as it stands, which passes so many rows through each of its programs.

    Adds to `sources` where its hours are known from.
    """
    run, module = stage.run, stage.module
    state, words = _state(run), module.plan(experiment, run)
    if state == "done":
        return Planned(run.name, state, words)
    left = module.left(experiment, run) if hasattr(module, "left") and state != "other settings" else 1.0
    rates = {program: rate for program in programs if (rate := _rate(experiment, run, program))}
    hours = None
    if len(rates) == len(programs):
        sources |= dict.fromkeys(rate.source for rate in rates.values())
        hours = left * sum(programs[program] / rate.per_second for program, rate in rates.items()) / 3600
    return Planned(run.name, state, words, (), round(left * _images(programs)), hours, round(left * stored))


def _state(run: StageRun) -> str:
    if run.changes():
        return "other settings"
    if run.is_done():
        return "done"
    return "partly done" if run.is_started() else "to do"


def _images(programs: Mapping[str, int]) -> int:
    """How many images a stage draws or reads: of its programs on images, what the one with most does."""
    return max((count for program, count in programs.items() if program not in TRAINING), default=0)


def _rate(experiment: Experiment, run: StageRun, program: str) -> Rate | None:
    rates = (
        rate_of(experiment, run.workdir, run.folder.parent, of) for of in _LIKE.get((run.name, program), (program,))
    )
    return next(filter(None, rates), None)


def _count(number: int) -> str:
    return f"{number:,}" if number else DASH


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else duration(hours) if hours else DASH


def _size(count: int) -> str:
    return size(count) if count else DASH
