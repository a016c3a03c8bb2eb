"""The largest batch that a device holds."""

import math
from collections.abc import Callable

from hgdpo_jax.preflight.compilation import Measurement

_MOST_TRIES = 4


def largest_batch(
    measure: Callable[[int], Measurement], first: int, at_first: Measurement, usable_bytes: int
) -> int | None:
    """The largest batch a device that was found to fit, by compiling it; 0 where not even one row does.

    Memory grows evenly with the batch, nearly: two batches tell where the limit lies, and compiling there tells the
    truth. None where the compilers say too little, or the tries do not suffice.
    """
    known = {first: at_first}

    def at(batch: int) -> Measurement:
        if batch not in known:
            known[batch] = measure(batch)
        return known[batch]

    at(2 * first if at_first.fits else max(1, first // 2))
    for _ in range(_MOST_TRIES):
        fitting = max((batch for batch, found in known.items() if found.fits), default=0)
        refused = min((batch for batch, found in known.items() if not found.fits), default=math.inf)
        if refused == fitting + 1:
            return fitting
        guess = _at_limit({b: m.peak_bytes for b, m in known.items() if m.peak_bytes}, usable_bytes)
        if guess is None:
            break
        guess = int(min(max(guess, 1), refused - 1))
        if guess <= fitting:
            return fitting
        at(guess)
    return max((batch for batch, found in known.items() if found.fits), default=None)


def _at_limit(peaks: dict[int, int], usable_bytes: int) -> int | None:
    """Where the line through the two points next to the limit meets it."""
    if len(peaks) < 2:
        return None
    (left, low), (right, high) = sorted(peaks.items(), key=lambda point: abs(point[1] - usable_bytes))[:2]
    slope = (high - low) / (right - left)
    return math.floor(left + (usable_bytes - low) / slope) if slope > 0 else None
