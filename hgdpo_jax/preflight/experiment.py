"""The cost of a whole experiment: arithmetic, device hours, price."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.models import base_shapes
from hgdpo_jax.preflight.compilation import Measurement
from hgdpo_jax.preflight.programs import TRAINING

# Rows (images, pairs) that a stage, or a part of one, passes through a program: by the names of both.
Work = Mapping[tuple[str, str], int]


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


def work(experiment: Experiment) -> Work:
    """The rows of each of the experiment's programs; raises UserError if the number of prompts is unknown."""
    stages, train, finetune = experiment.stages, experiment.train, experiment.finetune
    rows: dict[tuple[str, str], int] = {}
    if "generate_pool" in stages:
        prompts = _prompts(experiment, "train")
        if not prompts:
            raise UserError("nothing says how many prompts the pool has: set prompts.train, or prompts.train_count")
        rows["generate_pool", "generate_pool"] = rows["score_pool", "score_pool"] = prompts * experiment.pool.size
        if experiment.pairs.latents == "encoded":
            rows["select_pairs", "select_pairs"] = 2 * prompts
    if "train_policy" in stages:
        rows["train_policy", "train_policy"] = train.steps * train.batch_size
        # The base is drawn once, the tuned model at each evaluation.
        images = _prompts(experiment, "validation") * (1 + -(-train.steps // train.evaluate_every))
        validation = "train_policy: validation"
        rows[validation, "generate_pool"] = rows[validation, "score_pool"] = images
    if "evaluate_policy" in stages:
        images = len(experiment.evaluate.models) * _prompts(experiment, "test") * experiment.evaluate.seeds
        rows["evaluate_policy", "evaluate_policy"] = rows["evaluate_policy", "score_pool"] = images
    if "finetune_base" in stages:
        images = finetune.steps * finetune.batch_size
        rows["encode_images", "encode_images"] = rows["finetune_base", "finetune_base"] = images
    return rows


def _prompts(experiment: Experiment, name: str) -> int:
    """The number of prompts of a source; without a source, the number that is configured."""
    source, count = getattr(experiment.prompts, name), getattr(experiment.prompts, f"{name}_count")
    return len(load_prompts(source, count, f"config.prompts.{name}")) if source else count


def storage(experiment: Experiment, work: Work, programs: Mapping[str, Examined]) -> dict[str, int]:
    """Bytes of the artifacts, by kind."""
    base = base_shapes(experiment)
    latents = 2 * math.prod(base.latent_shape(experiment.pool.width, experiment.pool.height))
    stored: dict[str, int] = {}
    if images := work.get(("generate_pool", "generate_pool")):
        pairs = 2 * images // experiment.pool.size * latents
        stored |= {"pool": images * latents, "scores": 4 * images, "pairs": pairs}
    if images := work.get(("encode_images", "encode_images")):
        conditioning = sum(leaf.size for leaf in jax.tree.leaves(base.conditioning_shapes(1)))
        stored["encoded images"] = images * 2 * (latents + conditioning)
    if states := [programs[name].state_bytes for name in TRAINING if name in programs]:
        # Two are kept while a third is written.
        stored["checkpoints"] = 3 * sum(states)
    return stored
