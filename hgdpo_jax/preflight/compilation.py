"""Compiles a program for devices that are not present, and measures what it needs on one of them."""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from hgdpo_jax.preflight.arithmetic import matrix_products, roofline_seconds, total_bytes, total_flops
from hgdpo_jax.preflight.hlo import Hlo, Temporary
from hgdpo_jax.preflight.targets import Chip
from hgdpo_jax.sharding import data_mesh

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# What the TPU's compiler says that it needs: "Used 17.5G of 15.75G hbm", "required for HLO temporaries (50.00G)".
_NEEDED = re.compile(r"(?:Used |temporaries \()(\d+(?:\.\d+)?)([KMGT])")
# Elements from which an array counts as a whole activation.
_WHOLE_ACTIVATION = 2**20
# Kinds of temporaries that are listed.
_TEMPORARIES = 10


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with shapes and shardings as arguments.

    `weights` are the frozen arguments and `state` those that the program updates. `resident` are arrays that stay on
    the devices while it runs and are not its arguments. `least_flops()` is the least that its method needs, if known.
    """

    function: Any
    arguments: tuple
    weights: Any = None
    state: Any = None
    resident: Any = None
    least_flops: Callable[[], float] | None = None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program after compilation, on one device.

    `flops` are those of its matrix products and convolutions: fewer than traced if the compiler merged equal ones.
    `float32_products` have an operand in float32, and `transposes` write a whole activation in another order: both are
    counted by source. `donated_bytes` are those of arguments that may be overwritten, `reused_bytes` of those that are.
    `temporaries` are the largest at the peak of memory.
    """

    flops: float
    float32_products: dict[str, int]
    transposes: dict[str, int]
    donated_bytes: int
    reused_bytes: int
    temporaries: list[Temporary]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one call of a program needs on one device.

    `peak_bytes` is the sum of the next four: weights, state, other arrays on the device, and the call's own inputs,
    outputs and temporaries. It is 0 if a compiler refuses without saying what it needs. `least_flops` is the least for
    the program's method, None if unknown; `compiled` is None if the compiler refused.
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
    least_flops: float | None = None
    compiled: Compiled | None = None


def measure(build: Callable[[Mesh], Program], devices: Sequence[jax.Device], chip: Chip) -> Measurement:
    """Compiles the program that `build` returns for a mesh of all devices; counts the arithmetic of that for one."""
    program = build(data_mesh(devices))
    alone = program if len(devices) == 1 else build(data_mesh(devices[:1]))
    weights, state, resident = (_device_bytes(tree) for tree in (program.weights, program.state, program.resident))
    begin = time.monotonic()
    traced = program.function.trace(*program.arguments)
    traced_alone = traced if alone is program else alone.function.trace(*alone.arguments)
    products = matrix_products(traced_alone.jaxpr.jaxpr, chip.platform)
    needed, compiled = _compile(program, traced, chip)
    peak = needed + resident if needed else 0
    return Measurement(
        fits=compiled is not None and peak <= chip.usable_bytes,
        peak_bytes=peak,
        weight_bytes=weights,
        state_bytes=state,
        resident_bytes=resident,
        temporary_bytes=max(0, needed - weights - state),
        flops=total_flops(products),
        bytes=total_bytes(products),
        roofline_seconds=roofline_seconds(products, chip.peak_flops, chip.bandwidth),
        compile_seconds=time.monotonic() - begin,
        least_flops=alone.least_flops() if alone.least_flops else None,
        compiled=compiled,
    )


def _compile(program: Program, traced: Any, chip: Chip) -> tuple[int, Compiled | None]:
    """The bytes that a compiled program needs on a device, 0 if unknown, and the result unless it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        # The compilers report only in files which arrays exist at once.
        options: dict[str, Any] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            made = traced.lower(lowering_platforms=(chip.platform,)).compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found = _NEEDED.search(str(error))
            return int(float(found[1]) * _UNITS[found[2]]) if found else 0, None
        live_ranges = [path.read_text() for path in epath.Path(folder).glob("*live-range.txt")]
    hlo, memory = Hlo(made.as_text()), made.memory_analysis()
    donated = zip(jax.tree.leaves(program.arguments), jax.tree.leaves(traced.args_info), strict=True)
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return needed, Compiled(
        flops=hlo.flops(),
        float32_products=dict(hlo.float32_products()),
        transposes=dict(
            hlo.transposes(_WHOLE_ACTIVATION, besides=[leaf.shape for leaf in jax.tree.leaves(program.weights)])
        ),
        donated_bytes=_device_bytes([leaf for leaf, argument in donated if argument.donated]),
        reused_bytes=hlo.reused_bytes(),
        # The files of other programs, which the compiler runs to choose among kernels, are shorter.
        temporaries=hlo.temporaries(max(live_ranges, key=len, default=""), _TEMPORARIES),
    )


def _device_bytes(tree: Any) -> int:
    """Bytes of a tree on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
