"""What a whole experiment takes: arithmetic, device hours, price."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hgdpo_jax.preflight.compilation import Measurement


@dataclasses.dataclass(frozen=True)
class Work:
    """Rows (images, pairs) that a stage puts through a program; `stage` may name a part of one."""

    stage: str
    program: str
    rows: int


@dataclasses.dataclass(frozen=True)
class Examined:
    """A program, measured, with the rows that one call takes on one device and the setting that says how many."""

    measurement: Measurement
    rows: int
    setting: str
    device_batch: int
    largest_batch: int | None = None


def totals(
    programs: Mapping[str, Examined],
    work: Sequence[Work],
    *,
    devices: int,
    efficiencies: Sequence[float],
    price_per_hour: float,
    storage_bytes: Mapping[str, int],
) -> dict[str, Any]:
    """Sums over `work`, plain values; `efficiencies` are shares of the roofline's speed that programs reach.

    Batches count as full. `price_per_hour` is that of one device; 0: no price. Stages whose
    work goes through a program that was not examined, or has no rows, are in "not_counted".
    """
    counted = [item for item in work if item.rows and item.program in programs]
    seconds: dict[str, float] = {}
    flops = 0.0
    for item in counted:
        examined = programs[item.program]
        calls = item.rows / examined.rows
        seconds[item.stage] = seconds.get(item.stage, 0.0) + calls * examined.measurement.roofline_seconds
        flops += calls * examined.measurement.flops
    least = sum(seconds.values()) / 3600
    hours = {f"{share:g}": least / share for share in efficiencies}
    return {
        "flops": flops,
        "roofline_device_hours": least,
        "roofline_device_hours_of_stages": {stage: value / 3600 for stage, value in seconds.items()},
        "device_hours": hours,
        "hours": {share: value / devices for share, value in hours.items()},
        "price": {share: value * price_per_hour for share, value in hours.items()} if price_per_hour else None,
        "storage_bytes": {**storage_bytes, "all": sum(storage_bytes.values())},
        "not_counted": sorted({item.stage for item in work if item not in counted}),
    }
