"""The findings of a preflight, as a table for people and as plain values for programs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hgdpo_jax.preflight.experiment import Examined
from hgdpo_jax.preflight.targets import GPU_SHARE, Target

_GB = 1e9
# Temporaries of each program in the table; the JSON has more.
_LISTED = 5


def as_json(
    target: Target, programs: Mapping[str, Examined], total: Mapping[str, Any], experiment: str
) -> dict[str, Any]:
    """Plain values: for each program those of a call on one device, for the experiment the sums over all devices."""
    return {
        "experiment": experiment,
        "target": target.name,
        "devices": target.count,
        "usable_bytes": target.chip.usable_bytes,
        "programs": {name: _plain(examined) for name, examined in programs.items()},
        "total": dict(total),
    }


def _plain(examined: Examined) -> dict[str, Any]:
    values = dataclasses.asdict(examined)
    return values.pop("measurement") | values


def as_table(values: Mapping[str, Any], target: Target) -> str:
    """The values of `as_json` for people; GB are 10^9 bytes."""
    chip, total = target.chip, values["total"]
    stages = {**total["roofline_device_hours_of_stages"], "all": total["roofline_device_hours"]}
    parts = [
        f"{values['experiment']} on {target.count} x {chip.title}: {chip.usable_bytes / _GB:.1f} GB usable on each, "
        f"{chip.peak_flops / 1e12:g} TFLOP/s in bfloat16, {chip.bandwidth / _GB:,.0f} GB/s",
        "",
        "One call on one device; GB: weights, state (LoRA, optimiser), other arrays of the stage, the call's own",
        _columns(
            ("program", "batch", "fits", "peak", "weights", "state", "others", "own", "TFLOP", "GB moved", "roofline s")
            + ("compiled in s", "largest batch"),
            [_program_row(name, program) for name, program in values["programs"].items()],
        ),
        *_largest_lines(values["programs"]),
        "",
        "What the compiler made of them; of the call's own memory, the largest while most is in use, GB",
        *(line for name, program in values["programs"].items() for line in _compiled_lines(name, program)),
        "",
        f"The whole experiment: {total['flops']:.3g} FLOP; matrix products only, at full batches",
        _columns(
            ("stage", "device hours at the roofline", *(f"at {float(e):.0%} of it" for e in total["device_hours"])),
            [
                (stage, f"{hours:,.2f}", *(f"{hours / float(share):,.2f}" for share in total["device_hours"]))
                for stage, hours in stages.items()
            ],
        ),
        "",
    ]
    shares = [f"{float(share):.0%}" for share in total["device_hours"]]
    spans = " or ".join(f"{hours:,.1f}" for hours in total["hours"].values())
    parts.append(f"hours on {target.count} devices: {spans}, if programs reach {' or '.join(shares)} of the roofline")
    if total["price"]:
        parts.append(f"price: {' or '.join(f'{price:,.0f}' for price in total['price'].values())}")
    stored = ", ".join(f"{name} {_size(count)}" for name, count in total["storage_bytes"].items() if name != "all")
    parts.append(f"storage: {_size(total['storage_bytes']['all'])} ({stored})")
    if total["not_counted"]:
        parts.append(f"not counted: {', '.join(total['not_counted'])}")
    if chip.platform == "cuda":
        parts.append(
            f"run with XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE:g}: JAX takes 0.75 of a GPU's memory otherwise"
        )
    return "\n".join(parts) + "\n"


def _program_row(name: str, program: Mapping[str, Any]) -> tuple[str, ...]:
    peak, *sizes, own = (
        f"{program[f'{part}_bytes'] / _GB:.2f}" for part in ("peak", "weight", "state", "resident", "temporary")
    )
    # A compiler may refuse without saying what it needs.
    peak, own = (peak, own) if program["peak_bytes"] else ("?", "?")
    return (
        name,
        str(program["device_batch"]),
        "yes" if program["fits"] else "NO",
        peak,
        *sizes,
        own,
        f"{program['flops'] / 1e12:,.1f}",
        f"{program['bytes'] / _GB:,.0f}",
        f"{program['roofline_seconds']:.3f}",
        f"{program['compile_seconds']:.0f}",
        "-" if program["largest_batch"] is None else str(program["largest_batch"]),
    )


def _compiled_lines(name: str, program: Mapping[str, Any]) -> list[str]:
    compiled, least = program["compiled"], program["least_flops"]
    if compiled is None:
        return [f"{name}: refused"]
    kept = compiled["donated_bytes"] - compiled["reused_bytes"]
    parts = [
        f"{compiled['flops'] / 1e12:,.1f} TFLOP"
        + (f", {compiled['flops'] / least:.3f} of the least for the method" if least else ""),
        f"{sum(compiled['float32_products'].values())} products in float32",
        f"{sum(compiled['transposes'].values())} transpositions of whole activations",
        f"{_size(compiled['reused_bytes'])} of its arguments reused" + (f", {_size(kept)} NOT" if kept > 0 else ""),
    ]
    return [
        f"{name}: {'; '.join(parts)}",
        *(
            f"  {kind['bytes'] / _GB:5.2f}  {kind['count']} x {kind['array']}  {kind['source']}"
            for kind in compiled["temporaries"][:_LISTED]
        ),
    ]


def _largest_lines(programs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The largest value of each setting with which all its programs fit."""
    largest: dict[str, int] = {}
    for program in programs.values():
        if (found := program["largest_batch"]) is not None:
            largest[program["setting"]] = min(largest.get(program["setting"], found), found)
    shown = ", ".join(f"{name}={value}" for name, value in largest.items())
    return [f"largest that were compiled and fit: {shown}"] if largest else []


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under their heads; the first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = []
    for first, *others in (heads, *rows):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _size(count: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
