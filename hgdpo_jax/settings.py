"""Settings as typed values: which of a dataclass's fields decide a result."""

import dataclasses
from typing import Any

_DECIDES = "decides"


def free(default: Any) -> Any:
    """A field that changes no result, such as how many images a device takes at once."""
    return dataclasses.field(default=default, metadata={_DECIDES: False})


def named(default: Any) -> Any:
    """A field that names files: their content decides the result, and whoever reads them adds its fingerprint."""
    return dataclasses.field(default=default, metadata={_DECIDES: False})


def decisive(value: Any) -> dict[str, Any]:
    """The fields of a typed value that decide a result, as plain values; nested ones likewise."""
    found = {}
    for field in dataclasses.fields(value):
        if field.metadata.get(_DECIDES, True):
            entry = getattr(value, field.name)
            found[field.name] = decisive(entry) if dataclasses.is_dataclass(entry) else entry
    return found
