"""Two programs timed in turn, each in a process of its own that stays warm."""

import ctypes
import dataclasses
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hgdpo_jax.compilation import spare_memory_of_cpu

# What is timed, and how often it counts in the sum: once, or a share of it.
Part = tuple[Callable[[], object], float]
# The parts of one side, and in a few words how it runs.
Prepared = tuple[Sequence[Part], str]
# Called with "", to choose a way to run, or with the way that was chosen, in the process that will run the parts.
Prepare = Callable[[str], Prepared]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Ours and a peer's way to the same; `peer_name` says whose."""

    name: str
    ours: Prepare
    peer: Prepare
    peer_name: str


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one side in each round, its peak memory meanwhile, and the way it runs."""

    seconds: list[float]
    peak_bytes: int
    way: str

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def alternate(benchmark: Benchmark, rounds: int, folder: Path) -> tuple[Timing, Timing]:
    """Both sides' timings over so many rounds A B A B, after one call of each that is not counted.

    What is compiled is kept in `folder`, and timed in a second start: the memory that a compiler took is no part of it.
    """
    sides: list[_Side] = []
    try:
        for prepare in (benchmark.ours, benchmark.peer):
            # One after the other: to prepare is heavy too.
            first = _Side(prepare, folder)
            way = first.ask(("prepare", ""))
            first.end()
            sides.append(_Side(prepare, folder))
            sides[-1].ask(("prepare", way))
            sides[-1].way = way
        seconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            for side, found in zip(sides, seconds, strict=True):
                found.append(side.ask("run"))
        ours, peer = (Timing(s, side.ask("peak"), side.way) for s, side in zip(seconds, sides, strict=True))
    finally:
        for side in sides:
            side.end()
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
        "ours_way": ours.way,
        "peer_way": peer.way,
        "rounds": len(ratios),
    }


class _Side:
    """A process that prepares one side, then runs it when asked."""

    way = ""

    def __init__(self, prepare: Prepare, folder: Path):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, prepare, folder), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, question: Any) -> Any:
        self.pipe.send(question)
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("the process of one side ended; what it said stands above") from None

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(pipe: Any, prepare: Prepare, folder: Path) -> None:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    spare_memory_of_cpu()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "torchinductor")
    parts: Sequence[Part] = ()
    while True:
        question = pipe.recv()
        if question == "run":
            pipe.send(_run(parts))
        elif question == "peak":
            pipe.send(_peak())
        else:
            parts, way = prepare(question[1])
            _run(parts)
            _forget_peak()
            pipe.send(way)


def _run(parts: Sequence[Part]) -> float:
    total = 0.0
    for call, share in parts:
        begin = time.perf_counter()
        call()
        total += share * (time.perf_counter() - begin)
    return total


def fastest(ways: dict[str, Callable[[], Callable[[], object]]], chosen: str) -> tuple[Callable[[], object], str]:
    """What the chosen way makes; where none is, of the way whose second call is the fastest. Also its name.

    A way that fails on this machine is left out.
    """
    if chosen:
        return ways[chosen](), chosen
    seconds: dict[str, float] = {}
    for name, make in ways.items():
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
    return ways[best](), best


def torch_ways(make: Callable[[Any, bool], Callable[[], object]]) -> dict[str, Callable[[], Callable[[], object]]]:
    """The ways to run a network in PyTorch, by `make(memory_format, compiled)`."""
    import torch

    return {
        "contiguous": lambda: make(torch.contiguous_format, False),
        "channels_last": lambda: make(torch.channels_last, False),
        "channels_last, torch.compile": lambda: make(torch.channels_last, True),
    }


_HIGH_WATER = re.compile(r"VmHWM:\s+(\d+) kB")
_RESIDENT, _USED = re.compile(r"Rss:\s+(\d+) kB"), re.compile(r"Referenced:\s+(\d+) kB")


def _forget_peak() -> None:
    """From here on the peak counts: what came before, reading weights and compiling, has its own."""
    # What of that is free again glibc keeps: most of a gigabyte on both sides.
    ctypes.CDLL(None).malloc_trim(0)
    # First no page has been used, then no peak been reached.
    for question in ("1", "5"):
        Path("/proc/self/clear_refs").write_text(question)


def _peak() -> int:
    """Most memory that this process has had at once since `_forget_peak`, in bytes.

    Pages that nothing used since do not count, for either side: PyTorch maps weights of which it may hold a copy, and
    both have read weights that what is timed has no need of.
    """
    pages = Path("/proc/self/smaps_rollup").read_text()
    high_water, resident, used = (
        int(pattern.search(text)[1])
        for pattern, text in (
            (_HIGH_WATER, Path("/proc/self/status").read_text()),
            (_RESIDENT, pages),
            (_USED, pages),
        )
    )
    return 1024 * (high_water - resident + used)
