"""What the numbers and texts of a config may be, looked at before anything else is."""

import math
from collections.abc import Mapping
from typing import Any

from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError
from hgdpo_jax.settings import LARGEST, leaves, limits
from hgdpo_jax.texts import require_whole_characters


def require_limits(experiment: Experiment) -> None:
    """Raises UserError where a field holds a number out of its range, or a text that no file and no path can be."""
    for name, field, value in leaves(experiment):
        if name == "extra":
            _require_all("", value)
            continue
        name = name.replace("objective.", f"{experiment.objective.name()}.", 1)
        entries = value if isinstance(value, tuple | list) else (value,)
        for kind, what in ((tuple[float, ...], "numbers"), (tuple[str, ...], "texts")):
            for entry in entries if field.type == kind else ():
                if isinstance(entry, str) != (what == "texts"):
                    raise UserError(f"{name} holds {entry!r}, expected {what}")
        for entry in entries:
            _require(name, entry, *limits(field))
    if experiment.name in (".", "..") or set(experiment.name) & set("/\\\0"):
        raise UserError(f"name is {experiment.name!r}, expected the name of a folder, which lies in WORKDIR/runs")


def _require_all(name: str, value: Any) -> None:
    """Of settings that no field describes."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _require_all(f"{name}.{key}" if name else key, entry)
    else:
        for entry in value if isinstance(value, tuple | list) else (value,):
            _require(name, entry)


def _require(name: str, entry: Any, least: float = 0, most: float = LARGEST) -> None:
    if isinstance(entry, str):
        require_whole_characters(entry, f"config.{name}")
    number = isinstance(entry, int | float) and not isinstance(entry, bool)
    if number and not (least <= entry <= most and math.isfinite(entry)):
        raise UserError(f"{name} is {entry}, expected {_words(entry, least, most)}")


def _words(number: float, least: float, most: float) -> str:
    if math.isinf(most):
        return "a finite number"
    return f"at least {least:g}" if most == LARGEST and number < least else f"{least:g} to {most:.15g}"
