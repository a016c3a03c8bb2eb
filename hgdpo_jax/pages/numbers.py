"""How numbers are written for people."""

import math
from typing import Any

DASH = "–"
_SPACE = "\N{NO-BREAK SPACE}"


def format_score(value: float) -> str:
    """A score in four significant digits, whole numbers as such, or a dash where it is not finite."""
    if not math.isfinite(value):
        return DASH
    return (f"{value:.0f}" if value == round(value) else f"{value:#.4g}").replace("-", "−")


def signed(value: float, digits: int | None = None) -> str:
    """A difference with its sign, in three significant digits or so many after the point; a dash where it has none."""
    if not math.isfinite(value):
        return DASH
    # Adding zero turns a rounded -0.0 into 0.0.
    text = f"{value:+.3g}" if digits is None else f"{round(value, digits) + 0.0:+.{digits}f}"
    return text.replace("-", "−")


def plain(value: float, digits: int = 3) -> str:
    """A number in so many significant digits."""
    return f"{value:.{digits}g}".replace("-", "−") if math.isfinite(value) else DASH


def percent(share: float) -> str:
    """A share of 1 in per cent."""
    return f"{100 * share:.1f}{_SPACE}%"


def percent_points(value: float) -> str:
    """A value in per cent."""
    return f"{value:.2f}{_SPACE}%" if math.isfinite(value) else DASH


def signed_percent(value: float) -> str:
    """A change in per cent, with its sign."""
    return f"{signed(value, 2)}{_SPACE}%"


def span(low: float, high: float) -> str:
    """Two shares as the ends of a range."""
    return f"{100 * low:.1f} to {percent(high)}"


def p_value(value: float) -> str:
    """A p-value with its name."""
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def counted(count: int, noun: str) -> str:
    """How many there are of something."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def setting(value: Any) -> str:
    """A setting's value, or a dash where it has none."""
    return DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)
