"""Compiles a program for devices that are not there, and says what it takes on one of them."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from hgdpo_jax.preflight.arithmetic import matrix_products, roofline_seconds, total_bytes, total_flops
from hgdpo_jax.preflight.targets import Chip
from hgdpo_jax.sharding import data_mesh

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# What the TPU's compiler says that it needs: "Used 17.5G of 15.75G hbm", "required for HLO temporaries (50.00G)".
_NEEDED = re.compile(r"(?:Used |temporaries \()(\d+(?:\.\d+)?)([KMGT])")


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with shapes and shardings for arguments.

    `weights` and `state` are those arguments, or parts of them, that are frozen and that the program changes.
    `resident` are arrays that lie on the devices while it runs and are no arguments of it.
    """

    function: Any
    arguments: tuple
    weights: Any = None
    state: Any = None
    resident: Any = None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one call of a program takes on one device.

    `peak_bytes` is the sum of the next four: weights and state, what else lies on the device, and the rest: the call's
    own inputs, outputs and temporaries. Where a compiler refuses without saying what it needs, it is 0.
    """

    fits: bool
    peak_bytes: int
    weight_bytes: int
    state_bytes: int
    resident_bytes: int
    temporary_bytes: int
    flops: float
    bytes: float
    roofline_seconds: float
    compile_seconds: float


def measure(build: Callable[[Mesh], Program], devices: Sequence[jax.Device], chip: Chip) -> Measurement:
    """Compiles what `build` makes for a mesh of all devices, and counts the arithmetic of what it makes for one."""
    program = build(data_mesh(devices))
    weights, state, resident = (_device_bytes(tree) for tree in (program.weights, program.state, program.resident))
    begin = time.monotonic()
    traced = program.function.trace(*program.arguments)
    alone = traced if len(devices) == 1 else _trace(build(data_mesh(devices[:1])))
    products = list(matrix_products(alone.jaxpr.jaxpr, chip.platform))
    needed, refused = _compiled_bytes(traced, chip)
    peak = needed + resident if needed else 0
    return Measurement(
        fits=not refused and peak <= chip.usable_bytes,
        peak_bytes=peak,
        weight_bytes=weights,
        state_bytes=state,
        resident_bytes=resident,
        temporary_bytes=max(0, needed - weights - state),
        flops=total_flops(products),
        bytes=total_bytes(products),
        roofline_seconds=roofline_seconds(products, chip.peak_flops, chip.bandwidth),
        compile_seconds=time.monotonic() - begin,
    )


def _trace(program: Program) -> Any:
    return program.function.trace(*program.arguments)


def _compiled_bytes(traced: Any, chip: Chip) -> tuple[int, bool]:
    """What the compiled program needs on a device, 0 where it does not say, and whether the compiler refused it."""
    try:
        memory = traced.lower(lowering_platforms=(chip.platform,)).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = _NEEDED.search(str(error))
        return int(float(found[1]) * _UNITS[found[2]]) if found else 0, True
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    ), False


def _device_bytes(tree: Any) -> int:
    """Bytes of a tree's share of one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
