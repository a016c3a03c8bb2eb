"""Where the time of a program goes, from a trace of JAX's profiler."""

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_LISTED = 10
# What only contains other operations.
_CONTAINERS = re.compile(r"ThunkExecutor|while|conditional|call\b")
# Names of kernels and of XLA's operations, by what they compute; the first that matches counts.
_KINDS = {
    "attention (cuDNN)": r"fmha|flash|sdpa|cudnn.*attention|fprop_wgrad",
    "convolution": r"conv(?!ert)|implicit|fprop|dgrad|wgrad|winograd|xmma_.*(nhwc|nchw)",
    "matrix product": r"gemm|cutlass|nvjet|cublas|dot|matmul",
    "copy, transposition": r"transpose|copy|memcpy|memset|nchwtonhwc|nhwctonchw",
    "reduction (norms, softmax)": r"reduce|norm|softmax",
    "elementwise": r"fusion|elementwise|loop|wrapped|broadcast|add|multiply|convert|select",
}


def largest_kinds(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The kinds of operation that took most of one call: share of the device's time, seconds, and how many."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        files = list(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(files[0]))
        return _sum_up(data)


def _sum_up(data: Any) -> list[dict[str, Any]]:
    times: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for plane in data.planes:
        on_device = plane.name.startswith("/device:")
        for line in plane.lines:
            # A GPU's streams have its kernels; on a CPU XLA's operations run in threads of its own.
            if not (line.name.startswith("Stream") if on_device else "XLA" in line.name or "xla" in line.name):
                continue
            for event in line.events:
                if _CONTAINERS.match(event.name):
                    continue
                # Numbers tell apart what does the same.
                name = re.sub(r"[._]?\d+", "", event.name)[:80]
                times[_kind(event.name), name].append(event.duration_ns)
    total = sum(sum(durations) for durations in times.values())
    found = [
        {
            "kind": kind,
            "name": name,
            "share": sum(durations) / total,
            "seconds": sum(durations) / 1e9,
            "count": len(durations),
        }
        for (kind, name), durations in times.items()
    ]
    return sorted(found, key=lambda kind: -kind["seconds"])[:_LISTED]


def _kind(name: str) -> str:
    for kind, pattern in _KINDS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "other"
