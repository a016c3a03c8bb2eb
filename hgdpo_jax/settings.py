"""Settings as typed values: what a dataclass's fields may hold, and which of them decide a result."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hgdpo_jax.errors import UserError

# Of numbers of which nothing is said.
LARGEST = (1 << 31) - 1


def setting(default: Any, *, least: float = 0, most: float = LARGEST, decides: bool = True) -> Any:
    """A field that holds numbers from `least` to `most`; without it, from 0 on."""
    return dataclasses.field(default=default, metadata={"limits": (least, most), "decides": decides})


def signed(default: Any) -> Any:
    """A field that holds any finite numbers."""
    return setting(default, least=-math.inf, most=math.inf)


def free(default: Any, *, least: float = 0, most: float = LARGEST) -> Any:
    """A field that changes no result, such as how many images a device takes at once."""
    return setting(default, least=least, most=most, decides=False)


def named(default: Any) -> Any:
    """A field that names files: their content decides the result, and whoever reads them adds its fingerprint."""
    return setting(default, decides=False)


def limits(field: dataclasses.Field) -> tuple[float, float]:
    """The least and the largest number that a field may hold."""
    return field.metadata.get("limits", (0, LARGEST))


def decisive(value: Any) -> dict[str, Any]:
    """The fields of a typed value that decide a result, as plain values; nested ones likewise."""
    found = {}
    for field in dataclasses.fields(value):
        if field.metadata.get("decides", True):
            entry = getattr(value, field.name)
            found[field.name] = decisive(entry) if dataclasses.is_dataclass(entry) else entry
    return found


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Dotted name, field and value of everything that a typed value holds, but for what holds values itself."""
    for field in dataclasses.fields(value):
        entry = getattr(value, field.name)
        if dataclasses.is_dataclass(entry):
            yield from leaves(entry, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, entry


def read(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    """The section `name` of a config as the dataclass `kind`; raises UserError where a setting is absent or unknown."""
    values = values if isinstance(values, Mapping) else {}
    if wrong := sorted({field.name for field in dataclasses.fields(kind)} ^ set(values)):
        what = "does not know" if wrong[0] in values else "lacks"
        raise UserError(f"config.{name} {what} {wrong[0]}: begin with config = base_config()")
    return kind(**values)
