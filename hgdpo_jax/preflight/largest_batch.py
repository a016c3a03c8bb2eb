"""The largest batch that a device holds."""

import math
from collections.abc import Callable

from hgdpo_jax.preflight.compilation import Measurement

_MOST_TRIES = 5


def largest_batch(
    measure: Callable[[int], Measurement], first: int, at_first: Measurement, usable_bytes: int
) -> int | None:
    """The largest batch per device that was compiled and fits; 0 where not even one row does.

    Memory is nearly linear in the batch: two batches predict where the limit is, and compiling there verifies it. None
    where nothing fits, and the compilers say too little or the tries do not suffice.
    """
    known = {first: at_first}
    batch = 2 * first if at_first.fits else max(1, first // 2)
    for _ in range(_MOST_TRIES):
        if batch not in known:
            known[batch] = measure(batch)
        fitting = max((batch for batch, found in known.items() if found.fits), default=0)
        refused = min((batch for batch, found in known.items() if not found.fits), default=math.inf)
        limit = _at_limit({b: found.peak_bytes for b, found in known.items() if found.peak_bytes}, usable_bytes)
        if refused == fitting + 1 or limit is None:
            break
        batch = int(min(max(limit, 1), refused - 1))
        if batch <= fitting:
            break
    return fitting if fitting or refused == 1 else None


def _at_limit(peaks: dict[int, int], usable_bytes: int) -> int | None:
    """Where the line through the two points next to the limit meets it."""
    if len(peaks) < 2:
        return None
    (left, low), (right, high) = sorted(peaks.items(), key=lambda point: abs(point[1] - usable_bytes))[:2]
    slope = (high - low) / (right - left)
    return math.floor(left + (usable_bytes - low) / slope) if slope > 0 else None
