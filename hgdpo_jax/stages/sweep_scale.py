"""Draws test prompts at several LoRA scales: score and diversity by scale (HG-DPO, Fig. 8)."""

import dataclasses

import numpy as np

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.compared_models import BASE, TUNED, ComparedModel
from hgdpo_jax.evaluation.results import write_results
from hgdpo_jax.experiment.evaluating import check_evaluation, comparable_settings, evaluation_needs, measure_models
from hgdpo_jax.experiment.prompts import number_of_prompts, test_prompts
from hgdpo_jax.files import write_bytes
from hgdpo_jax.pages.pictures import contact_sheet, png_bytes
from hgdpo_jax.settings import decisive

INPUTS = ("export_adapter",)
EVERY_HOST = True
_SHOWN_PROMPTS = 6

needs = evaluation_needs


def settings(experiment: Experiment) -> dict:
    return {
        **comparable_settings(experiment),
        "sweep": decisive(experiment.sweep),
        "sample.latent_normalization": experiment.sample.latent_normalization,
    }


def plan(experiment: Experiment, run: StageRun) -> str:
    seeds, scales = experiment.evaluate.seeds, experiment.sweep.scales
    prompts = min(number_of_prompts(experiment, "test"), experiment.sweep.prompts)
    return f"{prompts:,} prompts x {seeds} images at {len(scales)} scales"


def check(experiment: Experiment) -> None:
    """Raises UserError if no scale is given, one is given twice, or base or a scorer cannot be loaded."""
    check_evaluation(experiment)
    if not experiment.sweep.scales or len(set(experiment.sweep.scales)) < len(experiment.sweep.scales):
        raise UserError(f"config.sweep.scales is {experiment.sweep.scales}, expected one scale or more, each once")


def run(experiment: Experiment, run: StageRun) -> None:
    scales, normalized = experiment.sweep.scales, experiment.sample.latent_normalization
    tuned = [ComparedModel.parse(f"{TUNED}@{scale:g}", scale, normalized) for scale in scales]
    # The base comes first: win rates are against it.
    models = [ComparedModel.parse(BASE, 0.0, False), *tuned]
    found = measure_models(experiment, run, models, _prompts(experiment), _SHOWN_PROMPTS)
    if not found:
        return
    results, (_, *shown) = found
    models_with_pictures = dict(results.models)
    for model, images in zip(tuned, shown, strict=True):
        names = [f"images/{row}-{model.scale:g}.png" for row in range(len(images))]
        for name, image in zip(names, images, strict=True):
            write_bytes(run.folder / name, png_bytes(image))
        models_with_pictures[model.name] = dataclasses.replace(results.models[model.name], pictures=names)
    sheet = contact_sheet(np.stack(shown, axis=1).reshape(-1, *shown[0].shape[1:]), len(scales))
    write_bytes(run.folder / "sheet.png", sheet)
    settings = {**results.settings, "sweep.prompts": experiment.sweep.prompts}
    write_results(run.folder, dataclasses.replace(results, settings=settings, models=models_with_pictures))


def _prompts(experiment: Experiment) -> list[str]:
    return test_prompts(experiment)[: experiment.sweep.prompts]
