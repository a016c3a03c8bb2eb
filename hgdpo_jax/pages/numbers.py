"""How numbers are written for people, and for JSON."""

import math
from typing import Any

import numpy as np

DASH = "–"


def format_score(value: float | None) -> str:
    """A score in four significant digits, whole numbers as such, or a dash where there is none."""
    if value is None or not np.isfinite(value):
        return DASH
    return (f"{value:.0f}" if value == round(value) else f"{value:#.4g}").replace("-", "−")


def signed(value: float, digits: int | None = None) -> str:
    """A difference with its sign, in three significant digits or so many after the point; a dash where it has none."""
    if not math.isfinite(value):
        return DASH
    # Adding zero turns a rounded -0.0 into 0.0.
    text = f"{value:+.3g}" if digits is None else f"{round(value, digits) + 0.0:+.{digits}f}"
    return text.replace("-", "−")


def finite_or_none(value: Any) -> Any:
    """Plain values with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
