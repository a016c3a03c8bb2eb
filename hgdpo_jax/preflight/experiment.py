"""What a whole experiment takes: arithmetic, device hours, price."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.models import base_shapes
from hgdpo_jax.preflight.compilation import Measurement
from hgdpo_jax.preflight.programs import TRAINING


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


def work(experiment: Experiment) -> list[Work]:
    """What the experiment puts through its programs; raises UserError where nothing says how many prompts there are."""
    items = []
    if "generate_pool" in experiment.stages:
        prompts = _prompts(experiment, "train")
        if not prompts:
            raise UserError("nothing says how many prompts the pool has: set prompts.train, or prompts.train_count")
        images = prompts * experiment.pool.size
        items += [Work("generate_pool", "generate_pool", images), Work("score_pool", "score_pool", images)]
        if experiment.pairs.latents == "encoded":
            items.append(Work("select_pairs", "select_pairs", 2 * prompts))
    if "train_policy" in experiment.stages:
        evaluations = -(-experiment.train.steps // experiment.train.evaluate_every)
        # The base is drawn once, the tuned model each time.
        images = _prompts(experiment, "validation") * (1 + evaluations)
        items += [
            Work("train_policy", "train_policy", experiment.train.steps * experiment.train.batch_size),
            Work("train_policy: validation", "generate_pool", images),
            Work("train_policy: validation", "score_pool", images),
        ]
    if "evaluate_policy" in experiment.stages:
        images = len(experiment.evaluate.models) * _prompts(experiment, "test") * experiment.evaluate.seeds
        items += [Work("evaluate_policy", "evaluate_policy", images), Work("evaluate_policy", "score_pool", images)]
    if "finetune_base" in experiment.stages:
        images = experiment.finetune.steps * experiment.finetune.batch_size
        items.append(Work("encode_images", "encode_images", images))
        items.append(Work("finetune_base", "finetune_base", images))
    return items


def _prompts(experiment: Experiment, name: str) -> int:
    """How many prompts a source has; where none is named, how many of them are to be used."""
    source, count = getattr(experiment.prompts, name), getattr(experiment.prompts, f"{name}_count")
    return len(load_prompts(source, count)) if source else count


def storage(experiment: Experiment, programs: Mapping[str, Examined]) -> dict[str, int]:
    """Bytes that stay, by what they are."""
    base = base_shapes(experiment)
    height, width, channels = base.latent_shape(experiment.pool.width, experiment.pool.height)
    latents = 2 * height * width * channels
    stored: dict[str, int] = {}
    if "generate_pool" in experiment.stages:
        prompts = _prompts(experiment, "train")
        images = prompts * experiment.pool.size
        stored |= {"pool": images * latents, "scores": 4 * images, "pairs": 2 * prompts * latents}
    if "finetune_base" in experiment.stages:
        conditioning = sum(leaf.size for leaf in jax.tree.leaves(base.conditioning_shapes(1)))
        stored["encoded images"] = (
            experiment.finetune.steps * experiment.finetune.batch_size * 2 * (latents + conditioning)
        )
    # Two are kept while a third is written.
    states = [3 * programs[name].measurement.state_bytes for name in TRAINING if name in programs]
    return stored | ({"checkpoints": sum(states)} if states else {})
