"""The results of all devices as a page, and the efficiencies that preflight takes from them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.accelerator.rows import Result, Row
from hgdpo_jax.preflight import measured
from hgdpo_jax.preflight.targets import CHIPS

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent.parent / "docs" / "accelerator.md"
EFFICIENCIES = Path(measured.__file__).parent / measured.FILE
# Estimate for a process on an H100 with 16 CPU cores: imports, the device, weights.
_START_SECONDS = 12.0
# Rows whose share of the roofline stands for an experiment's programs.
_PROGRAMS = ("sampling", "step, ")

_INTRODUCTION = """# On an accelerator

`python -m benchmarks.accelerator` checks and times the full-size programs on one GPU: Stable Diffusion 1.5 and
PickScore with random weights, beside diffusers, transformers and PEFT where these are installed. That command writes
this page.

- **Checks** are relative errors: float32 beside PyTorch on the same device and beside a CPU's figures
  (`benchmarks/accelerator/cpu_figures.json`), bfloat16 beside float32, and what TF32 would lose.
- **Timings** are medians of calls after a warm-up, with the lowest and highest. The share of the peak is relative to
  the speed of one large bfloat16 matrix product in the same run. Preflight's time is the roofline's; preflight's memory
  is what the compiler says that arguments, results and temporaries take. The peer's second figure is with
  torch.compile.
- **First image** is the time from the start of a process to its first image at 704x1024, with all programs compiled
  before.
"""


def write() -> None:
    """Writes the page and the efficiencies of all devices that have results."""
    devices = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json")) if path.stem != "cpu_figures"]
    PAGE.write_text(page(devices))
    known = {chip.title for chip in CHIPS.values()}
    found = {device["device"]: efficiencies(device["rows"]) for device in devices if device["device"] in known}
    if any(found.values()):
        EFFICIENCIES.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def efficiencies(rows: Mapping[str, Result]) -> dict[str, float]:
    """Share of the roofline's speed that each of an experiment's programs reached."""
    return {
        name: row["roofline_seconds"] / row["seconds"]
        for name, row in rows.items()
        if name.startswith(_PROGRAMS) and row.get("roofline_seconds")
    }


def page(devices: Iterable[Mapping[str, Any]]) -> str:
    """The page, Markdown."""
    parts = [_INTRODUCTION]
    for device in devices:
        versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
        parts += [f"## {device['device']}\n\nCommit {device['commit']}; {versions}.\n", *_tables(device["rows"])]
    if len(parts) == 1:
        parts.append("No device has been measured yet.\n")
    return "\n".join(parts)


def plan(rows: Iterable[Row]) -> tuple[list[tuple[str, str, float]], float]:
    """Name, process and estimated seconds of each row on an H100, the first of a process with its start; their sum."""
    lines, process = [], ""
    for row in rows:
        seconds = row.seconds + (_START_SECONDS if row.process != process else 0.0)
        process = row.process
        lines.append((row.name, row.process, seconds))
    return lines, sum(seconds for _, _, seconds in lines)


def _tables(rows: Mapping[str, Result]) -> Iterable[str]:
    yield "### Checks\n"
    yield _table(
        ("", "Compared", "Error", "Limit", ""),
        [
            (name, compared, _short(error["error"]), _short(error["limit"]), _verdict(row, compared, error["limit"]))
            for name, row in rows.items()
            for compared, error in row.get("errors", {}).items()
        ],
    )
    peak = rows.get("matrix product", {}).get("flops_per_second")
    if peak:
        yield f"### Timings\n\nOne matrix product reaches {peak / 1e12:.0f} TFLOP/s in bfloat16.\n"
    yield _table(
        (
            "",
            "Seconds",
            "TFLOP/s",
            "Of the peak",
            "Preflight's s",
            "Memory, GB",
            "Preflight's GB",
            "Peer's s",
            "Times as fast",
        ),
        [
            _timing(name, row, rows.get(f"peer: {name}", {}), rows.get(f"peer: {name}, compiled", {}), peak)
            for name, row in rows.items()
            if "seconds" in row and not name.startswith("peer: ")
        ],
    )
    for name, row in rows.items():
        if "kinds" in row:
            yield f"### Where the time of {name} goes\n"
            yield _table(
                ("Kind", "Name", "Share", "Seconds", "Count"),
                [
                    (
                        kind["kind"],
                        f"`{kind['name']}`",
                        f"{kind['share']:.1%}",
                        f"{kind['seconds']:.4f}",
                        str(kind["count"]),
                    )
                    for kind in row["kinds"]
                ],
            )
    other = {name: row.get("error") or row.get("left_out") for name, row in rows.items()}
    for name, words in other.items():
        if words:
            yield f"- {name}: {words}"


def _timing(name: str, row: Result, peer: Result, compiled: Result, peak: float | None) -> tuple[str, ...]:
    theirs = [result["seconds"] for result in (peer, compiled) if "seconds" in result]
    speed = row.get("flops_per_second")
    return (
        name,
        f"{row['seconds']:.4g} ({row.get('lowest', row['seconds']):.4g} to {row.get('highest', row['seconds']):.4g})",
        f"{speed / 1e12:.0f}" if speed else "",
        f"{speed / peak:.0%}" if speed and peak else "",
        _short(row.get("roofline_seconds")),
        f"{row['process_peak_bytes'] / 1e9:.1f}" if row.get("process_peak_bytes") else "",
        f"{row['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in row else "",
        " / ".join(f"{seconds:.4g}" for seconds in theirs),
        f"{min(theirs) / row['seconds']:.2f}" if theirs else "",
    )


def _verdict(row: Result, compared: str, limit: float | None) -> str:
    if limit is None:
        return ""
    return "**failed**" if compared in row.get("failed", ()) else "passed"


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else "" if value is None else str(value)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if rows else ""
