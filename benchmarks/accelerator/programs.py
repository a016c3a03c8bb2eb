"""Compiling several programs at once, and timing one."""

import concurrent.futures
import contextlib
import dataclasses
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax

from hgdpo_jax.models import attention, precision
from hgdpo_jax.preflight.arithmetic import matrix_products, roofline_seconds, total_flops
from hgdpo_jax.preflight.targets import CHIPS


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, what its compiler says of it, and its arithmetic."""

    call: Callable[..., Any]
    compile_seconds: float
    # Arguments, results and temporaries at once.
    peak_bytes: int
    flops: float
    # At the maker's peak figures; None for a device that preflight does not know.
    roofline_seconds: float | None


class Compiler:
    """Threads that trace and compile programs."""

    def __init__(self) -> None:
        self.pool = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def submit(
        self, function: Callable[..., Any], *arguments: Any, precision: str | None = None
    ) -> "concurrent.futures.Future[Program]":
        """Compiles a function, jitted or not, for these arguments.

        `precision` is that of float32 products, in the models too, which would ask for the highest.
        """
        return self.pool.submit(_compile, function, arguments, precision)


# Tracing holds the interpreter's lock anyway, and a precision of one's own must not reach other threads.
_TRACING = threading.Lock()


@contextlib.contextmanager
def _products_in(chosen: str | None) -> Iterator[None]:
    if chosen is None:
        yield
        return

    def ask(dtype: Any) -> contextlib.AbstractContextManager:
        return jax.default_matmul_precision(chosen)

    with contextlib.ExitStack() as stack:
        for module in (precision, attention):
            stack.enter_context(mock.patch.object(module, "precision_of", ask))
        stack.enter_context(jax.default_matmul_precision(chosen))
        yield


def _compile(function: Callable[..., Any], arguments: tuple, chosen_precision: str | None) -> Program:
    begin = time.perf_counter()
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    with _TRACING, _products_in(chosen_precision):
        traced = jitted.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    device = jax.devices()[0]
    products = matrix_products(traced.jaxpr.jaxpr, "cuda" if device.platform == "gpu" else device.platform)
    chip = next((chip for chip in CHIPS.values() if chip.title == device.device_kind), None)
    return Program(
        call=compiled,
        compile_seconds=seconds,
        peak_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        flops=total_flops(products),
        roofline_seconds=roofline_seconds(products, chip.peak_flops, chip.bandwidth) if chip else None,
    )


def timed(call: Callable[[], Any], at_least_seconds: float, warm: int = 2) -> dict[str, Any]:
    """Median, lowest and highest seconds of calls that return when they have ended: 3 to 50, for so long in all."""
    for _ in range(warm):
        call()
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < at_least_seconds and len(seconds) < 50):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return {
        "seconds": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "calls": len(seconds),
    }
