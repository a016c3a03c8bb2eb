"""Efficiencies that `python -m benchmarks.accelerator` measured: shares of the roofline's speed, by kind of device."""

import json
from importlib import resources

from hgdpo_jax.preflight.targets import Chip

FILE = "measured.json"
# Assumed for devices that have not been measured.
ASSUMED = (0.3, 0.5)


def efficiencies(chip: Chip) -> tuple[float, ...]:
    """Lowest and highest share of the roofline's speed that programs reached on this kind of device, or `ASSUMED`."""
    file = resources.files("hgdpo_jax.preflight") / FILE
    measured = json.loads(file.read_text()) if file.is_file() else {}
    shares = measured.get(chip.title, {}).values()
    return tuple(sorted({min(shares), max(shares)})) if shares else ASSUMED
