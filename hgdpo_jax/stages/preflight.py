"""Compiles the experiment's programs for accelerators that are not there: memory, arithmetic, hours and price."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment, plain
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.models import base_shapes
from hgdpo_jax.experiment.prompts import number_of_prompts
from hgdpo_jax.experiment.work import TRAINING, stored_bytes, work
from hgdpo_jax.files import write_json, write_text
from hgdpo_jax.preflight.apart import compiler_environment, require_compiler, run_apart
from hgdpo_jax.preflight.compilation import Measurement
from hgdpo_jax.preflight.experiment import Examined, totals
from hgdpo_jax.preflight.largest_batch import largest_batch
from hgdpo_jax.preflight.measured import efficiencies
from hgdpo_jax.preflight.programs import BATCH_SETTINGS, measure_program
from hgdpo_jax.preflight.report import as_json, as_table
from hgdpo_jax.preflight.targets import Target, parse_target, target_devices
from hgdpo_jax.scorers.sources import FUNCTION, ScorerSource
from hgdpo_jax.training.accumulation import accumulation_steps

INPUTS = ()


def settings(experiment: Experiment) -> dict:
    # Everything that may decide a shape or a sum.
    return plain(dataclasses.replace(experiment, name="", cpu_devices=0))


def check(experiment: Experiment) -> None:
    """Raises UserError for an unknown target, a compiler that is not installed, or an impossible setting."""
    options = experiment.preflight
    target = parse_target(options.target)
    for section in (TRAINING[name] for name in program_names(experiment) if name in TRAINING):
        if (rows := getattr(experiment, section).batch_size) % target.count:
            raise UserError(
                f"config.{section}.batch_size is {rows}, expected a multiple of the {target.count} devices of {target}"
            )
    if "generate_pool" in experiment.stages and not number_of_prompts(experiment, "train"):
        raise UserError(
            "the number of training prompts is unknown: set config.prompts.train or config.prompts.train_count"
        )
    require_compiler(target)


def plan(experiment: Experiment, run: StageRun) -> str:
    return f"{', '.join(program_names(experiment))} compiled for {experiment.preflight.target}"


def run(experiment: Experiment, run: StageRun) -> None:
    values, table = examine(experiment, compile_apart(experiment))
    write_json(run.folder / "preflight.json", values)
    write_text(run.folder / "preflight.txt", table)
    print(table, end="", flush=True)


def compile_apart(experiment: Experiment) -> Callable[[str, int], Measurement]:
    """A function that measures a program for the config's target, given its rows per device, in a separate process."""
    target = parse_target(experiment.preflight.target)
    return functools.partial(run_apart, compiler_environment(target), _measure_for, experiment, target)


def examine(experiment: Experiment, measure: Callable[[str, int], Measurement]) -> tuple[dict[str, Any], str]:
    """The results of `measure(program, rows per device)` for all programs, as plain values and as a table."""
    target = parse_target(experiment.preflight.target)
    programs = {name: _examine_program(experiment, target, name, measure) for name in program_names(experiment)}
    total = totals(
        programs,
        work(experiment),
        devices=target.count,
        efficiencies=experiment.preflight.efficiencies or efficiencies(target.chip),
        price_per_hour=experiment.preflight.price_per_hour,
        storage_bytes=stored_bytes(experiment, base_shapes(experiment)),
    )
    values = as_json(target, programs, total, experiment.name)
    return values, as_table(values, target)


def program_names(experiment: Experiment) -> list[str]:
    """The programs to compile, in the order of `BATCH_SETTINGS`; raises UserError where one is unknown."""
    chosen = experiment.preflight.programs
    for name in chosen:
        if name not in BATCH_SETTINGS:
            raise UserError(f"config.preflight.programs has {name!r}, expected some of {', '.join(BATCH_SETTINGS)}")
    names = set(chosen or experiment.stages)
    if experiment.pairs.latents == "sampled":
        # Then the stage decodes and encodes nothing.
        names.discard("select_pairs")
    scorer = experiment.weights.scorer
    if scorer and ScorerSource.parse(scorer).kind == FUNCTION:
        # Such a function has no program; its images are reported as not counted.
        names.discard("score_pool")
    if names.isdisjoint(BATCH_SETTINGS):
        raise UserError(
            f"config.stages are {', '.join(experiment.stages)}, none of which has a program, expected one of "
            f"{', '.join(BATCH_SETTINGS)}"
        )
    return [name for name in BATCH_SETTINGS if name in names]


def _examine_program(
    experiment: Experiment, target: Target, name: str, measure: Callable[[str, int], Measurement]
) -> Examined:
    def measured(device_batch: int) -> Measurement:
        print(f"preflight: compiling {name} for {target}, {device_batch} per device", flush=True)
        found = measure(name, device_batch)
        words = "fits in" if found.fits else "does not fit, needs"
        needed, seconds = found.peak_bytes / 1e9, found.compile_seconds
        print(f"preflight: {name} {words} {needed:.2f} GB ({seconds:.0f} s)", flush=True)
        return found

    setting = BATCH_SETTINGS[name]
    device_batch = rows = operator.attrgetter(setting)(experiment)
    if section := TRAINING.get(name):
        options = getattr(experiment, section)
        rows = options.batch_size // target.count
        device_batch = rows // accumulation_steps(options.batch_size, options.device_batch, target.count)
    found, largest = measured(device_batch), None
    if experiment.preflight.largest_batch:
        largest = largest_batch(measured, device_batch, found, target.chip.usable_bytes)
    return Examined(**vars(found), rows=rows, setting=setting, device_batch=device_batch, largest_batch=largest)


def _measure_for(experiment: Experiment, target: Target, name: str, device_batch: int) -> Measurement:
    return measure_program(experiment, name, device_batch, target_devices(target), target.chip)
