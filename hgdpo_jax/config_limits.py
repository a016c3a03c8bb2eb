"""What the values of a config may be, checked before anything else is."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError
from hgdpo_jax.settings import LARGEST, leaves
from hgdpo_jax.texts import require_whole_characters

_TYPES: Mapping[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "whole numbers"),
    float: (int | float, "numbers"),
    str: (str, "text"),
}


def require_limits(experiment: Experiment) -> None:
    """Raises UserError where a setting has a wrong type or is out of its range, or a text is not valid UTF-8."""
    named = {"": experiment} | {f"{name}.": section for name, section in experiment.extra.items()}
    for name, field, value in (leaf for prefix, section in named.items() for leaf in leaves(section, prefix)):
        if not isinstance(value, Mapping):
            name = f"config.{name.replace('objective.', f'{experiment.objective.name()}.', 1)}"
            for entry in value if isinstance(value, tuple | list) else (value,):
                _require(name, entry, *(get_args(field.type) or (field.type,))[:1], **field.metadata)
    for setting, name in (("config.name", experiment.name), ("config.sample.name", experiment.sample.name)):
        if name in (".", "..") or set(name) & set("/\\\0"):
            raise UserError(f"{setting} is {name!r}, expected the name of a folder in WORKDIR/runs, without slashes")


def _require(
    name: str, entry: Any, kind: type, limits: tuple[float, float] = (0, LARGEST), among: tuple = (), **_: Any
) -> None:
    if kind not in _TYPES:
        raise UserError(f"{name} is declared as {kind}, expected bool, int, float, str, a mapping or a tuple of them")
    python_type, expected = _TYPES[kind]
    if not isinstance(entry, python_type) or isinstance(entry, bool) != (kind is bool):
        raise UserError(f"{name} holds {entry!r}, expected {expected}")
    if among and entry not in among:
        raise UserError(f"{name} is {entry!r}, expected {' or '.join(map(repr, among))}")
    if isinstance(entry, str):
        require_whole_characters(entry, name)
    elif not (limits[0] <= entry <= limits[1] and math.isfinite(entry)):
        raise UserError(f"{name} is {entry}, expected {_words(entry, *limits)}")


def _words(number: float, least: float, most: float) -> str:
    return f"at least {least:g}" if most == LARGEST and number < least else f"{least:g} to {most:.15g}"
