"""What the numbers and choices of a config may be, looked at before anything else is."""

import math
from collections.abc import Mapping

from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import require_whole_characters

# Least and largest value; every other number is finite, and from 0 on where nothing is said.
_INT32 = (1 << 31) - 1
_SHARE = (0, 1)
_COUNT = (1, _INT32)
_ANY = (-math.inf, math.inf)
_LIMITS: Mapping[str, tuple[float, float]] = {
    "seed": (0, (1 << 32) - 1),
    "pool.size": _COUNT,
    "pool.steps": _COUNT,
    "pool.guidance": _ANY,
    # The sides of 16,384 x 16,384, the largest image that is read.
    "pool.width": (1, 1 << 14),
    "pool.height": (1, 1 << 14),
    "pool.block": _COUNT,
    "pool.device_batch": _COUNT,
    "pool.unusable_limit": _SHARE,
    "scoring.device_batch": _COUNT,
    "adapter.rank": _COUNT,
    "adapter.scale": _ANY,
    "loss.statistic_stride": _COUNT,
    **{
        f"{section}.{name}": _COUNT
        for section in ("train", "finetune")
        for name in ("steps", "batch_size", "device_batch", "evaluate_every", "checkpoint_every")
    },
    "finetune.empty_captions": _SHARE,
    "sample.seeds": _COUNT,
    "evaluate.seeds": _COUNT,
    "sweep.scales": _ANY,
    "sweep.prompts": _COUNT,
    "preflight.efficiencies": _ANY,
}
# What the tuples hold; those of other packages' settings may hold either.
_NUMBERS = ("sweep.scales", "preflight.efficiencies")
_TEXTS = ("stages", "sample.prompts", "evaluate.models", "evaluate.scorers", "evaluate.measures", "preflight.programs")


def require_limits(name: str, value: object) -> None:
    """Raises UserError where a field holds a number out of its range, or a text that no file and no path can be."""
    for entry in value if isinstance(value, tuple | list) else (value,):
        if isinstance(entry, str):
            require_whole_characters(entry, f"config.{name}")
        number = isinstance(entry, int | float) and not isinstance(entry, bool)
        if name in _NUMBERS and not number:
            raise UserError(f"{name} holds {entry!r}, expected numbers")
        if name in _TEXTS and not isinstance(entry, str):
            raise UserError(f"{name} holds {entry!r}, expected texts")
        if not number:
            continue
        least, most = _LIMITS.get(name, (0, _INT32))
        if not (least <= entry <= most and math.isfinite(entry)):
            raise UserError(f"{name} is {entry}, expected {_words(entry, least, most)}")
    if name == "name" and isinstance(value, str) and (value in (".", "..") or set(value) & set("/\\\0")):
        raise UserError(f"name is {value!r}, expected the name of a folder, which lies in WORKDIR/runs")


def _words(number: float, least: float, most: float) -> str:
    if math.isinf(most):
        return "a finite number"
    return f"at least {least:g}" if most == _INT32 and number < least else f"{least:g} to {most:.15g}"
