"""Two programs timed in turn, each in a process of its own that stays warm."""

import dataclasses
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# What is timed, and how often it counts in the sum: once, or a share of it.
Part = tuple[Callable[[], object], float]
# The parts of one side, and in a few words how it runs.
Prepared = tuple[Sequence[Part], str]
# Called in the process that will run the parts.
Prepare = Callable[[], Prepared]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Ours and a peer's way to the same; `peer_name` says whose."""

    name: str
    ours: Prepare
    peer: Prepare
    peer_name: str


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one side in each round, its peak memory meanwhile, and what it took before the first."""

    seconds: list[float]
    peak_bytes: int
    prepare_seconds: float
    how: str

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def alternate(benchmark: Benchmark, rounds: int) -> tuple[Timing, Timing]:
    """Both sides' timings over so many rounds A B A B, after one call of each that is not counted."""
    sides = [_Side(prepare) for prepare in (benchmark.ours, benchmark.peer)]
    try:
        # One after the other: to prepare is heavy too.
        prepared = [side.prepare() for side in sides]
        seconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            for side, found in zip(sides, seconds, strict=True):
                found.append(side.ask("run"))
        peaks = [side.ask("peak") for side in sides]
    finally:
        for side in sides:
            side.end()
    ours, peer = (Timing(s, peak, *p) for s, peak, p in zip(seconds, peaks, prepared, strict=True))
    return ours, peer


def summary(ours: Timing, peer: Timing) -> dict[str, Any]:
    """Ratio peer/ours, the median of the rounds with lowest and highest, and both sides' median seconds and memory."""
    ratios = [b / a for a, b in zip(ours.seconds, peer.seconds, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "ours_seconds": ours.median,
        "peer_seconds": peer.median,
        "ours_peak_bytes": ours.peak_bytes,
        "peer_peak_bytes": peer.peak_bytes,
        "ours_how": ours.how,
        "peer_how": peer.how,
        "rounds": len(ratios),
    }


class _Side:
    """A process that prepares one side, then runs it when asked."""

    def __init__(self, prepare: Prepare):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, prepare), daemon=True)
        self.process.start()
        theirs.close()

    def prepare(self) -> tuple[float, str]:
        return self.ask("prepare")

    def ask(self, word: str) -> Any:
        self.pipe.send(word)
        try:
            return self.pipe.recv()
        except EOFError:
            raise RuntimeError("the process of one side ended; what it said stands above") from None

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(pipe: Any, prepare: Prepare) -> None:
    parts: Sequence[Part] = ()
    while True:
        word = pipe.recv()
        if word == "prepare":
            begin = time.perf_counter()
            parts, how = prepare()
            _run(parts)
            seconds = time.perf_counter() - begin
            _forget_peak()
            pipe.send((seconds, how))
        elif word == "run":
            pipe.send(_run(parts))
        else:
            pipe.send(_peak())


def _run(parts: Sequence[Part]) -> float:
    total = 0.0
    for call, share in parts:
        begin = time.perf_counter()
        call()
        total += share * (time.perf_counter() - begin)
    return total


def fastest(candidates: dict[str, Callable[[], Callable[[], object]]]) -> tuple[Callable[[], object], str]:
    """Of several ways to the same, each made by a function, the one whose second call is the fastest, and its name.

    A way that fails on this machine is left out.
    """
    seconds: dict[str, float] = {}
    for name, make in candidates.items():
        try:
            call = make()
            call()
            begin = time.perf_counter()
            call()
        except Exception as error:
            print(f"  {name}: does not run here ({type(error).__name__})", flush=True)
        else:
            seconds[name] = time.perf_counter() - begin
            print(f"  {name}: {seconds[name]:.2f} s", flush=True)
    best = min(seconds, key=seconds.__getitem__)
    # Made again: the ways share their weights, and the last one has laid them out as it likes.
    return candidates[best](), best


_HIGH_WATER = re.compile(r"VmHWM:\s+(\d+) kB")


def _forget_peak() -> None:
    """From here on the peak counts: what came before, reading weights and compiling, has its own."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Most memory that this process has had at once since `_forget_peak`, in bytes."""
    return 1024 * int(_HIGH_WATER.search(Path("/proc/self/status").read_text())[1])
