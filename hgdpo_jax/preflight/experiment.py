"""The cost of a whole experiment: arithmetic, device hours, price."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hgdpo_jax.experiment.work import Work
from hgdpo_jax.preflight.compilation import Measurement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examined(Measurement):
    """A measured program, the rows of one call on one device, and the setting for the number of rows at once."""

    rows: int
    setting: str
    device_batch: int
    largest_batch: int | None = None


def totals(
    programs: Mapping[str, Examined],
    work: Work,
    *,
    devices: int,
    efficiencies: Sequence[float],
    price_per_hour: float,
    storage_bytes: Mapping[str, int],
) -> dict[str, Any]:
    """Sums over `work` as plain values; `efficiencies` are shares of the roofline's speed that programs reach.

    Batches are assumed to be full. `price_per_hour` is that of one device; 0: no price. "not_counted" has the stages
    without rows and those whose program was not examined.
    """
    counted = {names: rows for names, rows in work.items() if rows and names[1] in programs}
    seconds: dict[str, float] = {}
    flops = 0.0
    for (stage, name), rows in counted.items():
        program = programs[name]
        calls = rows / program.rows
        seconds[stage] = seconds.get(stage, 0.0) + calls * program.roofline_seconds
        flops += calls * program.flops
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
        "not_counted": sorted({stage for stage, _ in work.keys() - counted.keys()}),
    }
