"""What JAX and XLA are told before it compiles the first program of a process."""

import contextlib
import glob
import importlib.metadata
import importlib.util
import os
import sys
from types import ModuleType

from etils import epath

# Of a driver on Linux, of WSL and of Jetson.
_NVIDIA_DEVICES = ("/dev/nvidia*", "/dev/dxg", "/dev/nvhost-*", "/dev/nvgpu*")
_CONCURRENCY = "xla_cpu_enable_concurrency_optimized_scheduler"


def usable_cores() -> int:
    """How many cores this process may use; where the system does not say, as macOS, how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_out_cuda() -> None:
    """Hides JAX's CUDA plugin from this process where there is no NVIDIA GPU, before JAX is imported.

    Preflight's processes use it on such machines; in others JAX would print a traceback at every start. A JAX_PLATFORMS
    that names CUDA is obeyed.
    """
    if {"cuda", "gpu"} & set(os.environ.get("JAX_PLATFORMS", "").split(",")) or any(map(glob.glob, _NVIDIA_DEVICES)):
        return
    for entry in importlib.metadata.entry_points(group="jax_plugins"):
        if "cuda" in entry.value:
            nothing = ModuleType(entry.value)
            nothing.__dict__["initialize"] = lambda: None
            sys.modules.setdefault(entry.value, nothing)
            # JAX imports its compiled parts as well, which print when they find no driver; None is "not installed".
            plugin = f"jax_{entry.value.rpartition('_')[2]}_plugin"
            # The types of Python's library do not know of None.
            sys.modules.setdefault(plugin, None)  # type: ignore[arg-type]


def spare_memory_of_cpu() -> None:
    """Makes a CPU's programs free memory early instead of readying many operations at once.

    A training step of Stable Diffusion 1.5 on 256x256 pixels holds 0.78 GB of temporaries, 1.33 GB else, and is no
    slower. A value that XLA_FLAGS has stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # The compilers of other hardware read the variable as well, and end the process where they do not know a flag.
    accelerated = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    if _CONCURRENCY not in flags and not accelerated:
        os.environ["XLA_FLAGS"] = f"{flags} --{_CONCURRENCY}=false".strip()


def divide_cpu(devices: int) -> None:
    """Makes several devices of a CPU, which runs one small program on hardly more than a core."""
    # Not at the top: JAX reads its variables when it is imported, and a caller may yet set them.
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = min(usable_cores(), 8)
        # A program that used JAX before it called this keeps the devices it has.
        with contextlib.suppress(RuntimeError):
            # A power of two divides the usual batches.
            jax.config.update("jax_num_cpu_devices", devices or 1 << (cores.bit_length() - 1))


def keep_programs() -> None:
    """Makes sure that programs are compiled once, not once a run."""
    # Not at the top: JAX reads its variables when it is imported, and a caller may yet set them.
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(epath.Path("~/.cache/hgdpo_jax/xla").expanduser()))
    # Small programs too: a start has hundreds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
