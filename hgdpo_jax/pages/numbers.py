"""Formats numbers for people."""

import math
from typing import Any

DASH = "–"
_SPACE = "\N{NO-BREAK SPACE}"


def format_score(value: float) -> str:
    """A score with four significant digits, an integer without decimals, or a dash if it is not finite."""
    return _shown(value, f"{value:.0f}" if float(value).is_integer() else f"{value:#.4g}")


def signed(value: float, digits: int | None = None) -> str:
    """A difference with its sign, with three significant digits or `digits` decimals; a dash if it is not finite."""
    # Adding zero turns a rounded -0.0 into 0.0.
    return _shown(value, f"{value:+.3g}" if digits is None else f"{round(value, digits) + 0.0:+.{digits}f}")


def plain(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits, or a dash if it is not finite."""
    return _shown(value, f"{value:.{digits}g}")


def percent(share: float) -> str:
    """A share from 0 to 1, in per cent."""
    return f"{100 * share:.1f}{_SPACE}%"


def percent_points(value: float) -> str:
    """A value that is given in per cent, or a dash if it is not finite."""
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
    """A count with its noun, which is plural unless the count is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def ordinal(number: int) -> str:
    """A number's place in an order: 1st, 2nd, 5th."""
    ending = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def duration(hours: float) -> str:
    """A time in hours, or in minutes below two hours."""
    if hours >= 2:
        return f"{hours:,.3g} h" if hours < 100 else f"{hours:,.0f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else "< 1 min"


def size(count: float) -> str:
    """Bytes, with three significant digits and a decimal unit."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def setting(value: Any) -> str:
    """A setting's value, or a dash if it has none."""
    return DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _shown(value: float, text: str) -> str:
    """The text of a value with a true minus sign, or a dash if the value is not finite."""
    return text.replace("-", "−") if math.isfinite(value) else DASH
