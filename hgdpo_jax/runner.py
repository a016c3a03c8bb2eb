"""Runs the stages of an experiment that are not done."""

import dataclasses
import functools
import json
import operator
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from hgdpo_jax import hosts, leases
from hgdpo_jax.agreement import require_alike, require_workdir
from hgdpo_jax.artifacts import TRACEBACK, StageRun, refuse_changes
from hgdpo_jax.base_config import Experiment, plain
from hgdpo_jax.compilation import divide_cpu, keep_programs, spare_memory_of_cpu
from hgdpo_jax.config_files import checked
from hgdpo_jax.errors import UserError, first_line, outside_trouble
from hgdpo_jax.experiment import models, scoring
from hgdpo_jax.experiment.rates import note_rate
from hgdpo_jax.files import require_store, require_utf8_name, write_text
from hgdpo_jax.run_log import rates_reported
from hgdpo_jax.stages import inputs_of, load_stage, needs_of, require_stage
from hgdpo_jax.texts import require_whole_characters

_REPORT, _SUMMARY = "report/index.html", "report/summary.json"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's module and its run in this experiment."""

    module: ModuleType
    run: StageRun


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The stages' folders by their names; of an evaluation among them its page and what summary.json holds."""

    folders: Mapping[str, epath.Path]
    report: epath.Path | None
    summary: Mapping[str, Any] | None


def run(
    config: ConfigDict, workdir: epath.PathLike = "workdir", stages: Sequence[str] = (), **processes: Any
) -> Outcome:
    """Runs the stages of an experiment, or those named, that are not done; after a stop of any kind it resumes.

    `processes` are the arguments of `hosts.start`, where several processes share the work. Raises UserError for a
    mistake in the arguments, the config or the files that it names, as far as possible before any stage runs.
    """
    experiment = checked(config)
    workdir, stages = checked_arguments(experiment, workdir, stages)

    def refuse_neighbour() -> None:
        undone = (run for name in stages if not (run := stage_run(experiment, name, workdir)).is_done())
        if first_undone := next(undone, None):
            leases.refuse_neighbour(first_undone.folder)

    several = hosts.are_announced(**processes)
    if not several:
        # Before this machine's devices are asked for, which a run that is under way here needs.
        refuse_neighbour()
    spare_memory_of_cpu()
    divide_cpu(experiment.cpu_devices)
    keep_programs()
    # Before weights are fetched and hashed: hosts take unequal time for that, and JAX waits five minutes for late ones.
    hosts.start(**processes)
    if several:
        # Not earlier: the other processes would wait for one that has ended.
        hosts.together(refuse_neighbour)
    hosts.together(lambda: _require_given(experiment, stages))
    loaded = hosts.together(lambda: load_stages(experiment, stages, workdir))
    require_alike(plain(experiment), [stage.run for stage in loaded])
    hosts.together(lambda: refuse_changes([stage.run for stage in loaded]))
    # Whoever comes later would see what the first one has finished meanwhile.
    undone = hosts.from_first([stage.run.name for stage in loaded if not stage.run.is_done()])
    ahead = [stage for stage in loaded if stage.run.name in undone]
    hosts.together(lambda: require_inputs(ahead))
    hosts.together(lambda: refuse_changes([run for stage in ahead for run in stage.run.inputs.values()]))
    for hook in ("check", "rehearse"):
        hosts.together(functools.partial(check_stages, experiment, undone, hook))
    print(f"devices: {hosts.devices()}", flush=True)
    if ahead:
        require_workdir(workdir)

    width = max(len(stage.run.name) for stage in loaded)

    def say(stage: Stage, words: str) -> None:
        if hosts.is_first():
            print(f"{stage.run.name:{width}}  {words}", flush=True)

    for stage in loaded:
        if stage in ahead:
            _run_stage(stage, experiment, say)
        else:
            say(stage, "done before, skipped")
    outcome = _outcome([stage.run for stage in loaded])
    if outcome.report and hosts.is_first():
        print(f"report: {outcome.report}", flush=True)
    return outcome


def checked_arguments(
    experiment: Experiment, workdir: epath.PathLike, stages: Sequence[str]
) -> tuple[epath.Path, Sequence[str]]:
    """The folder, and the stages to run; raises UserError for a mistake in what was given."""
    if not experiment.name:
        raise UserError("config.name is empty, expected the name of the folder in WORKDIR/runs: set config.name")
    for path in (str(workdir), *filter(os.path.exists, dataclasses.astuple(experiment.weights))):
        require_utf8_name(path)
    require_whole_characters(str(workdir), "--workdir")
    folder = epath.Path(workdir).expanduser()
    require_store(folder)
    if folder.is_file():
        raise UserError(f"workdir {folder} is a file, expected a folder: give another with --workdir=DIR")
    stages = [stages] if isinstance(stages, str) and stages else stages or experiment.stages
    for name in stages:
        require_stage(name, experiment.stages)
    return folder, stages


def _require_given(experiment: Experiment, names: Sequence[str]) -> None:
    """Raises UserError, which names all of them, where settings are empty that stages need."""
    missing = missing_settings(experiment, names).values()
    if settings := list(dict.fromkeys(f"config.{name}" for needs in missing for name in needs)):
        raise UserError(
            f"{', '.join(settings)} {'is' if len(settings) == 1 else 'are'} empty: set in the config, or add "
            f"--{settings[0]}=SOURCE to the command; hgdpo_jax/base_config.py says what a source is"
        )


def stage_run(
    experiment: Experiment,
    name: str,
    workdir: epath.Path,
    settings: Mapping[str, Any] | None = None,
    inputs: Mapping[str, StageRun] | None = None,
) -> StageRun:
    """A stage of an experiment; without settings only its folder has a meaning."""
    module = load_stage(name)
    folder_name = module.folder_name(experiment) if hasattr(module, "folder_name") else name
    return StageRun(name, experiment.name, workdir, settings or {}, inputs or {}, folder_name)


def load_stages(experiment: Experiment, names: Sequence[str], workdir: epath.Path) -> list[Stage]:
    """The named stages, loaded, with their inputs; raises UserError where a setting that one needs is empty."""
    known: dict[str, Stage] = {}

    def load(name: str) -> Stage:
        if name not in known:
            module = load_stage(name)
            inputs = {earlier: load(earlier).run for earlier in inputs_of(module, experiment)}
            known[name] = Stage(module, stage_run(experiment, name, workdir, module.settings(experiment), inputs))
        return known[name]

    return [load(name) for name in names]


def missing_settings(experiment: Experiment, names: Sequence[str]) -> dict[str, list[str]]:
    """The empty settings that the named stages, and those that they read, need: by the names of the named stages."""

    def needs(name: str) -> list[str]:
        module = load_stage(name)
        earlier = (need for each in inputs_of(module, experiment) for need in needs(each))
        return [*earlier, *needs_of(module, experiment)]

    empty = {name: [need for need in needs(name) if not operator.attrgetter(need)(experiment)] for name in names}
    return {name: list(dict.fromkeys(settings)) for name, settings in empty.items() if settings}


def check_stages(experiment: Experiment, names: Sequence[str], hook: str = "check") -> None:
    """Calls a function of the named stages, where they have it: "check" or "rehearse" (stages/__init__.py)."""
    if hook == "check":
        # Files may have changed since this process checked them last.
        models.loaded_without_content.cache_clear()
        scoring.loaded_without_content.cache_clear()
    for module in map(load_stage, names):
        if hasattr(module, hook):
            getattr(module, hook)(experiment)


def require_inputs(ahead: Sequence[Stage]) -> None:
    """Raises UserError where a stage reads one that is neither done nor ahead of it."""
    coming: set[str] = set()
    for stage in ahead:
        for name, run in stage.run.inputs.items():
            if name not in coming and not run.is_done():
                raise UserError(
                    f"{stage.run.name} reads {run.name}, which is not done in {run.folder.parent}: "
                    f"put {run.name} before it in --stage, or leave --stage out"
                )
        coming.add(stage.run.name)


def _run_stage(stage: Stage, experiment: Experiment, say: Callable[[Stage, str], None]) -> None:
    """Runs a stage that is not done, unless another run is at it (UserError) or has completed it by now."""
    with leases.held(stage.run.folder):

        def start() -> bool:
            # Another run may have begun or completed it since this one looked.
            refuse_changes([*stage.run.inputs.values(), stage.run])
            if stage.run.is_done():
                return False
            stage.run.start()
            return True

        if not hosts.from_first(hosts.by_first(start)):
            return say(stage, "done by another run, skipped")
        say(stage, f"running: {stage.module.plan(experiment, stage.run)}")
        begin = time.monotonic()
        try:
            with rates_reported(functools.partial(note_rate, experiment, stage.run.workdir)):
                if hosts.is_first() or getattr(stage.module, "EVERY_HOST", False):
                    stage.module.run(experiment, stage.run)
        except UserError:
            raise
        except Exception as error:
            if outside_trouble(error):
                raise
            place = stage.run.folder / TRACEBACK
            write_text(place, traceback.format_exc())
            raise RuntimeError(
                f"{stage.run.name}: {type(error).__name__}: {first_line(error)} (traceback in {place})"
            ) from error
        hosts.wait()
        if hosts.is_first():
            stage.run.finish()
        say(stage, f"done in {time.monotonic() - begin:.1f} s")


def _outcome(runs: Sequence[StageRun]) -> Outcome:
    report, summary = None, None
    for run in runs:
        if (run.folder / _REPORT).is_file():
            report = run.folder / _REPORT
        if (run.folder / _SUMMARY).is_file():
            summary = json.loads((run.folder / _SUMMARY).read_text())
    return Outcome({run.name: run.folder for run in runs}, report, summary)
