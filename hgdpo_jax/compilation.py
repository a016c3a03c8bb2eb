"""What XLA is told before it compiles the first program of a process."""

import importlib.metadata
import importlib.util
import os

_CONCURRENCY = "xla_cpu_enable_concurrency_optimized_scheduler"


def usable_cores() -> int:
    """How many cores this process may use; where the system does not say, as macOS, how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
