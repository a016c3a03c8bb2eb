"""Compiles the experiment's programs for accelerators that are not there: memory, arithmetic, hours and price."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.errors import UserError
from hgdpo_jax.files import write_json, write_text
from hgdpo_jax.preflight.apart import compiler_environment, require_compiler, run_apart
from hgdpo_jax.preflight.compilation import Measurement
from hgdpo_jax.preflight.experiment import Examined, storage, totals, work
from hgdpo_jax.preflight.largest_batch import largest_batch
from hgdpo_jax.preflight.measured import efficiencies
from hgdpo_jax.preflight.programs import BATCH_SETTINGS, TRAINING, measure_program
from hgdpo_jax.preflight.report import as_json, as_table
from hgdpo_jax.preflight.targets import Target, parse_target, target_devices
from hgdpo_jax.training.accumulation import accumulation_steps

INPUTS = ()


def settings(config) -> dict:
    # All that may decide a shape or a sum: this folder is cheap to make again.
    return {name: value for name, value in config.to_dict().items() if name not in ("name", "cpu_devices", "stages")}


def check(config) -> None:
    """Raises UserError where the target is unknown or its compiler missing, or a setting cannot be."""
    options = config.preflight
    target = parse_target(options.target)
    if not all(0 < share <= 1 for share in options.efficiencies):
        raise UserError(f"preflight.efficiencies is {options.efficiencies}, expected shares above 0, 1 at most")
    if options.price_per_hour < 0:
        raise UserError(f"preflight.price_per_hour is {options.price_per_hour}, expected 0 or more")
    for name in program_names(config):
        if (section := TRAINING.get(name)) and config[section].batch_size % target.count:
            raise UserError(
                f"{section}.batch_size is {config[section].batch_size}, "
                f"expected a multiple of the {target.count} devices of {target}"
            )
    work(config)
    require_compiler(target)


def plan(config, run: StageRun) -> str:
    return f"{', '.join(program_names(config))} compiled for {config.preflight.target}"


def run(config, run: StageRun) -> None:
    values, table = examine(config, compile_apart(config))
    write_json(run.folder / "preflight.json", values)
    write_text(run.folder / "preflight.txt", table)
    print(table, end="", flush=True)


def compile_apart(config) -> Callable[[str, int], Measurement]:
    """What measures a program for the config's target, with so many rows a device, in a process of its own.

    Raises UserError where the target's compiler is not installed.
    """
    target = parse_target(config.preflight.target)
    require_compiler(target)
    return functools.partial(run_apart, compiler_environment(target), _measure_for, config.to_dict(), target)


def examine(config, measure: Callable[[str, int], Measurement]) -> tuple[dict[str, Any], str]:
    """What `measure(program, rows a device)` finds out of all programs, as plain values and as a table."""
    target = parse_target(config.preflight.target)
    programs = {}
    for name in program_names(config):

        def measured(device_batch: int, name=name) -> Measurement:
            print(f"preflight: compiling {name} for {target}, {device_batch} a device", flush=True)
            found = measure(name, device_batch)
            words = "fits in" if found.fits else "does not fit, needs"
            print(
                f"preflight: {name} {words} {found.peak_bytes / 1e9:.2f} GB ({found.compile_seconds:.0f} s)", flush=True
            )
            return found

        programs[name] = _examine_program(config, target, name, measured)
    total = totals(
        programs,
        work(config),
        devices=target.count,
        efficiencies=config.preflight.efficiencies or efficiencies(target.chip),
        price_per_hour=config.preflight.price_per_hour,
        storage_bytes=storage(config, programs),
    )
    values = as_json(target, programs, total, config.name)
    return values, as_table(values, target)


def program_names(config) -> list[str]:
    """The programs to compile, in the order of `BATCH_SETTINGS`; raises UserError where one is unknown."""
    chosen = config.preflight.programs
    for name in chosen:
        if name not in BATCH_SETTINGS:
            raise UserError(f"preflight.programs has {name!r}, expected some of {', '.join(BATCH_SETTINGS)}")
    names = [name for name in BATCH_SETTINGS if name in (chosen or config.stages)]
    if config.pairs.latents == "sampled" and "select_pairs" in names:
        # It decodes and encodes nothing then.
        names.remove("select_pairs")
    if not names:
        raise UserError(f"no program to compile: the config's stages are {', '.join(config.stages)}")
    return names


def _examine_program(config, target: Target, name: str, measured) -> Examined:
    setting = BATCH_SETTINGS[name]
    device_batch = rows = _field(config, setting)
    if section := TRAINING.get(name):
        options = config[section]
        rows = options.batch_size // target.count
        device_batch = rows // accumulation_steps(options.batch_size, options.device_batch, target.count)
    found = measured(device_batch)
    largest = None
    if config.preflight.largest_batch:
        largest = largest_batch(measured, device_batch, found, target.chip.usable_bytes)
    return Examined(found, rows=rows, setting=setting, device_batch=device_batch, largest_batch=largest)


def _measure_for(settings: Mapping[str, Any], target: Target, name: str, device_batch: int) -> Measurement:
    return measure_program(settings, name, device_batch, target_devices(target), target.chip)


def _field(config, name: str) -> Any:
    section, _, field = name.partition(".")
    return config[section][field]
