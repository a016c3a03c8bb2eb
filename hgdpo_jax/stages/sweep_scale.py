"""Draws test prompts at several weights of the LoRA: score and diversity against the weight (HG-DPO, Fig. 8)."""

import dataclasses
import json
from typing import Any

import numpy as np

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.compared_models import BASE, TUNED, ComparedModel
from hgdpo_jax.evaluation.measuring import Measured
from hgdpo_jax.evaluation.scores import headline
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.experiment.prompts import test_prompts
from hgdpo_jax.files import write_bytes, write_text
from hgdpo_jax.pages.pictures import contact_sheet, png_bytes
from hgdpo_jax.stages.evaluate_policy import RESULTS, comparable_settings, measure_models

INPUTS = ("export_adapter",)
EVERY_HOST = True
_SHOWN_PROMPTS = 6


def settings(experiment: Experiment) -> dict:
    return {
        **comparable_settings(experiment),
        "sweep.scales": experiment.sweep.scales,
        "sweep.prompts": experiment.sweep.prompts,
        "sample.latent_normalization": experiment.sample.latent_normalization,
    }


def plan(experiment: Experiment, run: StageRun) -> str:
    seeds, scales = experiment.evaluate.seeds, experiment.sweep.scales
    return f"{len(_prompts(experiment)):,} prompts x {seeds} images at {len(scales)} weights"


def check(experiment: Experiment) -> None:
    """Raises UserError where there is no weight to draw at, or one is named twice."""
    if not experiment.sweep.scales or len(set(experiment.sweep.scales)) < len(experiment.sweep.scales):
        raise UserError(f"sweep.scales is {experiment.sweep.scales}, expected one weight or more, each once")


def run(experiment: Experiment, run: StageRun) -> None:
    prompts, scales = _prompts(experiment), experiment.sweep.scales
    # The base first: win rates are over it.
    base = ComparedModel.parse(BASE, 0.0, False)
    tuned = [
        ComparedModel.parse(f"{TUNED}@{scale:g}", scale, experiment.sample.latent_normalization) for scale in scales
    ]
    scores, measured = measure_models(experiment, run, [base, *tuned], prompts, _SHOWN_PROMPTS)
    if not hosts.is_first():
        return
    points = [
        {
            "scale": scale,
            "scores": {name: _compared(measured[base.name], measured[model.name], name) for name in scores},
            "diversity": measured[model.name].diversity,
        }
        for scale, model in zip(scales, tuned, strict=True)
    ]
    shown = np.stack([measured[model.name].examples for model in tuned], axis=1)
    names = [[f"images/{i}-{scale:g}.png" for scale in scales] for i in range(len(shown))]
    for row_names, row in zip(names, shown, strict=True):
        for name, image in zip(row_names, row, strict=True):
            write_bytes(run.folder / name, png_bytes(image))
    write_bytes(run.folder / "sheet.png", png_bytes(contact_sheet(shown.reshape(-1, *shown.shape[2:]), len(scales))))
    results = {
        "experiment": run.experiment,
        "settings": comparable_settings(experiment) | {"sweep.prompts": experiment.sweep.prompts},
        "headline": headline(list(scores)),
        "scores": {name: score.to_dict() for name, score in scores.items()},
        "points": points,
        "grid": {"scales": list(scales), "prompts": prompts[: len(shown)], "images": names},
    }
    write_text(run.folder / RESULTS, json.dumps(results, allow_nan=False))


def _prompts(experiment: Experiment) -> list[str]:
    return test_prompts(experiment)[: experiment.sweep.prompts]


def _compared(base: Measured, tuned: Measured, score: str) -> dict[str, Any]:
    rate = win_rate(tuned.scores[score], base.scores[score])
    mean = float(np.nanmean(tuned.scores[score], dtype=np.float64))
    return {"mean": mean, "win_rate": {key: dataclasses.asdict(rate)[key] for key in ("rate", "low", "high")}}
