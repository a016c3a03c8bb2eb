"""Settings as typed values: what a dataclass's fields may hold, and which of them decide a result."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hgdpo_jax.errors import UserError

# The upper limit of numbers by default.
LARGEST = (1 << 31) - 1


def setting(
    default: Any, *, least: float = 0, most: float = LARGEST, among: Sequence[Any] = (), **metadata: bool
) -> Any:
    """A field whose numbers are from `least` to `most`, or whose value is one of `among`; plain fields start at 0."""
    return dataclasses.field(default=default, metadata={"limits": (least, most), "among": among, **metadata})


def free(default: Any, **limits: Any) -> Any:
    """A field that changes no result, such as how many images a device takes at once; `limits` as in `setting`."""
    return setting(default, **limits, decides=False)


def named(default: Any) -> Any:
    """A field that names files: their content decides the result, and whoever reads them adds its fingerprint."""
    return setting(default, decides=False, names_files=True)


def decisive(value: Any) -> dict[str, Any]:
    """The fields of a section that decide a result, as plain values."""
    deciding = (field.name for field in dataclasses.fields(value) if field.metadata.get("decides", True))
    return {name: getattr(value, name) for name in deciding}


def numbers(value: Any) -> dict[str, float]:
    """The fields of a section that are floating-point numbers, which a compiled program can have as arguments."""
    return {each.name: float(getattr(value, each.name)) for each in dataclasses.fields(value) if each.type is float}


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Dotted name, field and value of each setting in a typed value and in those that it contains."""
    for field in dataclasses.fields(value):
        entry = getattr(value, field.name)
        if dataclasses.is_dataclass(entry):
            yield from leaves(entry, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, entry


def read(kind: Any, values: Any, where: str) -> Any:
    """A dataclass `kind` of the values that a config has at `where`; raises UserError for one too few or too many."""
    values = values if isinstance(values, Mapping) else {}
    if wrong := sorted({field.name for field in dataclasses.fields(kind)} ^ set(values)):
        what = f"has {wrong[0]}, which is not a setting" if wrong[0] in values else f"lacks {wrong[0]}"
        raise UserError(f"{where} {what}: begin with config = base_config()")
    return kind(**values)
