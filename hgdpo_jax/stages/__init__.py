"""The stages of an experiment: each reads earlier stages' folders, writes one of its own, and nothing else.

A stage is a module with

    INPUTS                  names of the earlier stages that it reads; or a function, where the experiment decides:
    inputs(experiment)      their names
    NEEDS                   optional: settings that must not be empty, such as "weights.base"; or a function:
    needs(experiment)       their names
    settings(experiment)    the settings that it reads, a dict of plain values: they make its fingerprint
    plan(experiment, run)   one line on what it costs
    run(experiment, run)    the work; resumes where a killed run stopped
    check(experiment)       optional: raises UserError for what cannot work, as far as known without computing
    rehearse(experiment)    optional: raises UserError for what only trying shows, before any stage runs
    folder_name(experiment) optional: its folder in WORKDIR/runs/NAME, where that is not called as the stage
    left(experiment, run)   optional: the share of its work that is not done yet, of a stage that has begun
    EVERY_HOST = True       optional: every process calls run; otherwise only the first one does, and the others wait
"""

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from hgdpo_jax import plugins
from hgdpo_jax.errors import UserError

if TYPE_CHECKING:
    # So that --help does not import JAX.
    from hgdpo_jax.base_config import Experiment


def stage_names() -> list[str]:
    """The names of all stages."""
    return sorted(_modules())


def require_stage(name: str, preferred: Sequence[str] = ()) -> None:
    """Raises UserError if there is no stage of this name; it suggests one of the `preferred` stages if it can."""
    if name not in (names := _modules()):
        near = _nearest(name, [*(stage for stage in preferred if stage in names), *names])
        hint = f"did you mean {near}?" if near else f"the stages are {', '.join(stage_names())}"
        raise UserError(f"--stage or config.stages has {name!r}, which is not a stage: {hint}")


def _nearest(name: str, names: Sequence[str]) -> str:
    """The first of `names` with a word that begins with `name`, or the one spelt most like it; "" if there is none."""
    begun = (other for other in names if f"_{other}".find(f"_{name.lower().replace('-', '_')}") >= 0)
    return next(begun, "") or next(iter(difflib.get_close_matches(name, names, 1, 0.4)), "")


def load_stage(name: str) -> ModuleType:
    """The module of a stage; raises UserError if there is none of this name."""
    require_stage(name)
    return importlib.import_module(_modules()[name])


def inputs_of(module: ModuleType, experiment: "Experiment") -> Sequence[str]:
    """Names of the stages that a stage reads in an experiment."""
    return module.inputs(experiment) if hasattr(module, "inputs") else module.INPUTS


def needs_of(module: ModuleType, experiment: "Experiment") -> Sequence[str]:
    """Names of the settings that a stage needs in an experiment."""
    return module.needs(experiment) if hasattr(module, "needs") else getattr(module, "NEEDS", ())


def _modules() -> dict[str, str]:
    # The stages of the method come first, those of plugins after them.
    found: dict[str, str] = {}
    for place in [__name__, *(plugin.stages for plugin in plugins.installed().values() if plugin.stages)]:
        for module in pkgutil.iter_modules(importlib.import_module(place).__path__):
            if module.name in found:
                raise UserError(f"{place}.{module.name} is also {found[module.name]}: uninstall a plugin")
            found[module.name] = f"{place}.{module.name}"
    return found
