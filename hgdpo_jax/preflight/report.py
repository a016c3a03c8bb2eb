"""The findings of a preflight, as a table for people and as plain values for programs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hgdpo_jax.pages.numbers import size
from hgdpo_jax.pages.tables import aligned
from hgdpo_jax.pages.templates import render_text
from hgdpo_jax.preflight.experiment import Examined
from hgdpo_jax.preflight.targets import GPU_SHARE, Target

_GB = 1e9


def as_json(
    target: Target, programs: Mapping[str, Examined], total: Mapping[str, Any], experiment: str
) -> dict[str, Any]:
    """Plain values: for each program those of a call on one device, for the experiment the sums over all devices."""
    return {
        "experiment": experiment,
        "target": target.name,
        "devices": target.count,
        "usable_bytes": target.chip.usable_bytes,
        "programs": {name: dataclasses.asdict(examined) for name, examined in programs.items()},
        "total": total,
    }


def as_table(values: Mapping[str, Any], target: Target) -> str:
    """The values of `as_json` for people; GB are 10^9 bytes."""
    programs, total = values["programs"], values["total"]
    shares = {f"{float(share):.0%}": float(share) for share in total["device_hours"]}
    stages = {**total["roofline_device_hours_of_stages"], "all": total["roofline_device_hours"]}
    stage_heads = ("stage", "device hours at the roofline", *(f"at {share} of it" for share in shares))
    stage_rows = [
        (stage, *(f"{hours / share:,.2f}" for share in (1, *shares.values()))) for stage, hours in stages.items()
    ]
    program_rows = [_program_row(*item) for item in programs.items()]
    return render_text(
        "preflight.txt.jinja",
        str,
        chip=target.chip,
        program_lines=aligned([list(program_rows[0]), *(list(row.values()) for row in program_rows)], numbers=True),
        stage_lines=aligned([stage_heads, *stage_rows], numbers=True),
        shares=shares,
        size=size,
        gpu_share=GPU_SHARE,
        **values,
    )


def _program_row(name: str, program: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a program by the heads of their columns."""
    peak, weights, state, others, own = (
        f"{program[f'{part}_bytes'] / _GB:.2f}" for part in ("peak", "weight", "state", "resident", "temporary")
    )
    # A compiler may refuse without saying what it needs.
    unknown = not program["peak_bytes"]
    return {
        "program": name,
        "batch": str(program["device_batch"]),
        "fits": "yes" if program["fits"] else "NO",
        "peak": "?" if unknown else peak,
        "weights": weights,
        "state": state,
        "others": others,
        "own": "?" if unknown else own,
        "TFLOP": f"{program['flops'] / 1e12:,.1f}",
        "GB moved": f"{program['bytes'] / _GB:,.0f}",
        "roofline s": f"{program['roofline_seconds']:.3f}",
        "compiled in s": f"{program['compile_seconds']:.0f}",
        "largest batch": "-" if program["largest_batch"] is None else str(program["largest_batch"]),
    }
