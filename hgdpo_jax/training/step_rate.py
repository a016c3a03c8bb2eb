"""How fast a training runs, apart from compiling, evaluating and saving."""

import collections
import time

_WINDOW = 20


class StepRate:
    """Steps per second over the last steps; the first step of the process, which compiles, does not count."""

    def __init__(self) -> None:
        self._seconds: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._begin: float | None = None

    def step_done(self) -> None:
        """Counts a step, which took the time since the previous one, or since `resume`."""
        now = time.monotonic()
        if self._begin is not None:
            self._seconds.append(now - self._begin)
        self._begin = now

    def resume(self) -> None:
        """Leaves out the time since the last step, in which something else than training was done."""
        self._begin = time.monotonic()

    def per_second(self) -> float:
        """Steps per second; 0 before the second step."""
        return len(self._seconds) / total if (total := sum(self._seconds)) else 0.0
