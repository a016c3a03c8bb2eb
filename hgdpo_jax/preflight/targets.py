"""Accelerators that programs are compiled for although none is present."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from hgdpo_jax.errors import UserError

_GIB = 2**30

# The share of a GPU's memory for arrays, with XLA_PYTHON_CLIENT_MEM_FRACTION=.95; driver and libraries need the rest.
GPU_SHARE = 0.95

# Topologies in which TPU chips are rented, by their number.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_SOLID = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_GPUS_PER_HOST = 8
_MOST_GPUS = 1024

# What XLA's compiler asks about a GPU. The figures are those of XLA's own descriptions of these GPUs (openxla/xla,
# xla/backends/gpu/target_config/specs); of Ada, which has none there, those of NVIDIA's CUDA programming guide
# (compute capability 8.9) and data sheets.
_EVERY_GPU = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}
_AMPERE = _EVERY_GPU | {
    "core_count": 108,
    "fpus_per_core": 64,
    "l2_cache_size": 41943040,
    "clock_rate_ghz": 1.41,
    "shared_memory_per_core": 167936,
    "shared_memory_per_block_optin": 166912,
    "cuda_compute_capability": "{ major: 8 }",
}
_HOPPER = _EVERY_GPU | {
    "core_count": 132,
    "fpus_per_core": 128,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "cuda_compute_capability": "{ major: 9 feature_extension: ACCELERATED_FEATURES }",
}
_ADA = _EVERY_GPU | {
    "threads_per_core_limit": 1536,
    "fpus_per_core": 128,
    "shared_memory_per_core": 102400,
    "shared_memory_per_block_optin": 101376,
    "cuda_compute_capability": "{ major: 8 minor: 9 }",
}
_L4 = _ADA | {"core_count": 58, "l2_cache_size": 50331648, "clock_rate_ghz": 2.04}
_RTX_4090 = _ADA | {"core_count": 128, "l2_cache_size": 75497472, "clock_rate_ghz": 2.52}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device: bytes, operations a second in bfloat16 without sparsity, bytes a second, as published."""

    title: str
    platform: str
    memory_bytes: int
    peak_flops: float
    bandwidth: float
    # For a GPU, what the compiler asks about it.
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # For a TPU, topologies by the number of chips, and options of the topology.
    arrangements: Mapping[int, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def usable_bytes(self) -> int:
        """The memory that programs can use."""
        return int(self.memory_bytes * (GPU_SHARE if self.platform == "cuda" else 1))

    @property
    def counts(self) -> Sequence[int]:
        """How many of these devices a target may have."""
        return list(self.arrangements) or range(1, _MOST_GPUS + 1)


# Memory: for GPUs what the driver reports, for TPUs what libtpu 0.0.42 lets a program use.
CHIPS = {
    # NVIDIA's data sheet of the A100: 312 TFLOP/s; 1,555 and 2,039 GB/s.
    "a100-40gb": Chip("NVIDIA A100-SXM4-40GB", "cuda", 42_331_013_120, 312e12, 1555e9, _AMPERE),
    "a100-80gb": Chip("NVIDIA A100-SXM4-80GB", "cuda", 85_100_068_864, 312e12, 2039e9, _AMPERE),
    # NVIDIA's data sheet of the H100 SXM: 1,979 TFLOP/s with sparsity, half of it without; 3.35 TB/s.
    "h100": Chip("NVIDIA H100 80GB HBM3", "cuda", 84_942_979_072, 989e12, 3350e9, _HOPPER),
    # NVIDIA's data sheet of the H200 SXM: the arithmetic of an H100, 4.8 TB/s.
    "h200": Chip("NVIDIA H200", "cuda", 150_754_820_096, 989e12, 4800e9, _HOPPER),
    # NVIDIA's data sheet of the L4: 242 TFLOP/s with sparsity, half of it without; 300 GB/s.
    "l4": Chip("NVIDIA L4", "cuda", 24_152_899_584, 121e12, 300e9, _L4),
    # NVIDIA's Ada whitepaper: 165.2 TFLOP/s with sums in float32; 1,008 GB/s.
    "rtx-4090": Chip("NVIDIA GeForce RTX 4090", "cuda", 25_757_220_864, 165.2e12, 1008e9, _RTX_4090),
    # docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. Its two cores work as one device, as on a machine.
    "v4": Chip("TPU v4", "tpu", int(30.75 * _GIB), 275e12, 1200e9, {}, _SOLID, {"chip_config_name": "megacore"}),
    "v5e": Chip("TPU v5e", "tpu", int(15.75 * _GIB), 197e12, 819e9, {}, _FLAT),
    "v5p": Chip("TPU v5p", "tpu", int(95.74 * _GIB), 459e12, 2765e9, {}, _SOLID),
    "v6e": Chip("TPU v6e", "tpu", int(31.25 * _GIB), 918e12, 1638e9, {}, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of devices of one kind."""

    name: str
    count: int

    @property
    def chip(self) -> Chip:
        """The kind of device."""
        return CHIPS[self.name]

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"


def parse_target(text: str) -> Target:
    """The target that "NAME:COUNT" means; raises UserError for an unknown device or an impossible number of them."""
    name, _, count_text = text.partition(":")
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(CHIPS)}"
        raise UserError(f"config.preflight.target is {text!r}, and {name!r} is not a device: {hint}")
    if not count_text.isdecimal() or int(count_text) not in CHIPS[name].counts:
        expected = ", ".join(map(str, CHIPS[name].arrangements)) or f"1 to {_MOST_GPUS}"
        raise UserError(f"config.preflight.target is {text!r}, expected {name}:COUNT with {expected} devices")
    return Target(name, int(count_text))


def target_devices(target: Target) -> list[jax.Device]:
    """Devices to compile for, none of which is present; call it in a process with `compiler_environment`."""
    chip, count = target.chip, target.count
    if chip.platform == "tpu":
        # A single chip is a quarter of a usual host.
        bounds = {"chips_per_host_bounds": [1, 1, 1]} if count == 1 else {}
        topology = f"{target.name}:{chip.arrangements[count]}"
        return list(topologies.get_topology_desc(topology, "tpu", **chip.options, **bounds).devices)
    per_host = next(n for n in range(min(count, _GPUS_PER_HOST), 0, -1) if count % n == 0)
    topology = f"1x{count // per_host}x{per_host}"
    config = _target_config(chip)
    return list(topologies.get_topology_desc(topology, "cuda", topology=topology, target_config=config).devices)


def _target_config(chip: Chip) -> str:
    """XLA's description of a GPU, a `GpuTargetConfigProto` as text."""
    values = {**chip.description, "memory_bandwidth": int(chip.bandwidth), "device_memory_size": chip.memory_bytes}
    fields = "".join(f"  {name}{'' if str(value)[0] == '{' else ':'} {value}\n" for name, value in values.items())
    return (
        f"gpu_device_info {{\n{fields}}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 8 }\n"
        "runtime_version { major: 12 minor: 9 }\n"
        f'device_description_str: "{chip.title}"\n'
    )
