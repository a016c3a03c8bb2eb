"""Compares models on held-out prompts, from the same noise, by every score, and writes the report (HG-DPO, Sec. 4)."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, fingerprint_of
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.folder_images import FolderImages
from hgdpo_jax.data.pool import Block, Pool, blocks_of
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.color_shift import shift_between
from hgdpo_jax.evaluation.compared_models import TUNED, ComparedModel, compared_models
from hgdpo_jax.evaluation.measuring import ImageSource, Measured, measure
from hgdpo_jax.evaluation.pool_statistics import STATISTICS, read_statistics
from hgdpo_jax.evaluation.scores import Score, headline
from hgdpo_jax.evaluation.win_rate import compare_scores
from hgdpo_jax.experiment.drawing import batch_of_block, draw_parts, drawing_of, drawing_settings
from hgdpo_jax.experiment.models import load_base
from hgdpo_jax.experiment.prompts import prompts_fingerprint, test_prompts
from hgdpo_jax.experiment.scoring import score_fingerprints, scores_of
from hgdpo_jax.families.model import Model
from hgdpo_jax.files import checksum, write_text
from hgdpo_jax.pages.numbers import finite_or_none
from hgdpo_jax.pages.pictures import ImagePair
from hgdpo_jax.pages.run_report import ModelRow, ReportData, write_report
from hgdpo_jax.plugins import plugin_of
from hgdpo_jax.run_log import LOG, read_scalars
from hgdpo_jax.stages.check_pairs import read_check
from hgdpo_jax.weights import lora_files

INPUTS = ("select_pairs", "check_pairs", "train_policy", "export_adapter")
EVERY_HOST = True
RESULTS = "results.json"
_EXAMPLES = 24


def settings(experiment: Experiment) -> dict:
    models = {model.name: _model_settings(experiment, model) for model in models_of(experiment)}
    return {**comparable_settings(experiment), "models": models}


def comparable_settings(experiment: Experiment) -> dict:
    """What evaluations must share to stand in one table: all that decides the base's images and the scores."""
    return {
        "sampler": "DPM-Solver++ (2M)",
        **drawing_settings(experiment),
        **score_fingerprints(experiment),
        "evaluate.seeds": experiment.evaluate.seeds,
        "prompts.test": prompts_fingerprint(test_prompts(experiment)),
    }


def models_of(experiment: Experiment) -> list[ComparedModel]:
    """The models that a config compares."""
    return compared_models(experiment.evaluate.models, experiment.adapter.scale, experiment.sample.latent_normalization)


def _model_settings(experiment: Experiment, model: ComparedModel) -> dict[str, Any]:
    """What decides the images of a model."""
    if model.folder:
        return {"folder": _folder_images(experiment, model, epath.Path()).fingerprint}
    adapter = model.adapter
    if adapter not in ("", TUNED):
        if not epath.Path(adapter).exists():
            raise UserError(f"evaluate.models has {model.text!r}, but {adapter} does not exist, expected a LoRA")
        adapter = lora_files.adapter_fingerprint(adapter)
    return {"adapter": adapter, "scale": model.scale, "latent_normalization": model.latent_normalization}


def plan(experiment: Experiment, run: StageRun) -> str:
    names = ", ".join(model.name for model in models_of(experiment))
    return f"{len(test_prompts(experiment)):,} prompts x {experiment.evaluate.seeds} images: {names}"


def check(experiment: Experiment) -> None:
    """Raises UserError where a folder lacks images, or a LoRA does not fit."""
    blocks = blocks_of(test_prompts(experiment), experiment.pool.block)
    for model in models_of(experiment):
        if model.folder:
            _folder_images(experiment, model, epath.Path()).complete(blocks, experiment.evaluate.seeds)
        elif model.adapter not in ("", TUNED):
            base = load_base(experiment)
            base.load_adapter(model.adapter, base.lora_layers)


def run(experiment: Experiment, run: StageRun) -> None:
    models = models_of(experiment)
    scores, measured = measure_models(experiment, run, models, test_prompts(experiment), _EXAMPLES)
    if not hosts.is_first():
        return
    # In their order, which write_json would not keep.
    write_text(run.folder / RESULTS, json.dumps(_results(experiment, run, models, scores, measured), allow_nan=False))
    report = _report(experiment, run, models, scores, measured)
    write_report(epath.Path(run.folder) / "report", report)
    print(report, flush=True)


def measure_models(
    experiment: Experiment, run: StageRun, models: Sequence[ComparedModel], prompts: Sequence[str], examples: int
) -> tuple[dict[str, Score], dict[str, Measured]]:
    """Draws what is missing of each model's images, measures them, and reads the whole.

    Gives the scores, and what was measured by the models' names: {} on hosts but the first.
    """
    base, blocks, seeds = load_base(experiment), blocks_of(prompts, experiment.pool.block), experiment.evaluate.seeds
    sources: dict[str, ImageSource] = {
        model.name: _folder_images(experiment, model, run.folder / "drawn" / model.name)
        if model.folder
        else _DrawnImages(experiment, run, base, model)
        for model in models
    }
    for source in sources.values():
        source.complete(blocks, seeds)
    # Not before: gigabytes of scorers would lie beside the model while it draws.
    scores = scores_of(experiment)
    limit = experiment.pool.unusable_limit
    measured = {name: measure(source, blocks, seeds, scores, examples, limit) for name, source in sources.items()}
    return scores, {name: values for name, values in measured.items() if values}


def _folder_images(experiment: Experiment, model: ComparedModel, folder: epath.Path) -> FolderImages:
    return FolderImages(model.name, model.folder, folder, experiment.pool.width, experiment.pool.height)


class _DrawnImages:
    """Images that this run draws: the base's lie with the pools, where experiments share them, others in the stage."""

    def __init__(self, experiment: Experiment, run: StageRun, base: Model, model: ComparedModel):
        self._experiment, self._base, self._description = experiment, base, f"{run.name}: {model.name}"
        self.name, self._latent_normalization = model.name, model.latent_normalization
        self._adapters = []
        self.folder = run.pools / fingerprint_of(drawing_settings(experiment))
        if model.adapter:
            path = (
                run.input("export_adapter") / lora_files.EXPORTED["diffusers"]
                if model.adapter == TUNED
                else model.adapter
            )
            # A tracer, not a constant: one program serves all weights.
            self._adapters = [(base.load_adapter(path), np.float32(model.scale))]
            self.folder = run.folder / "drawn" / model.name

    def complete(self, blocks: Sequence[Block], seeds: int) -> None:
        images = seeds * sum(len(block.prompts) for block in blocks)
        pool = Pool(self.folder)

        def draw(missing: Sequence[tuple[Block, int]]) -> None:
            drawing = drawing_of(self._experiment, self._base, self._adapters, self._latent_normalization)
            draw_parts(self._experiment, drawing, pool, missing, images // hosts.count(), self._description)

        while pool.latents.make_missing(blocks, seeds, draw):
            pass

    def images(self, block: Block, index: int) -> tuple[np.ndarray, np.ndarray]:
        batch = batch_of_block(self._experiment.pool.device_batch, self._experiment.pool.block)
        return self._base.decode_latents_checked(Pool(self.folder).latents.read(block, index), batch)


def _results(
    experiment: Experiment,
    run: StageRun,
    models: Sequence[ComparedModel],
    scores: Mapping[str, Score],
    measured: Mapping[str, Measured],
) -> dict[str, Any]:
    """All that was measured, for `hgdpo_jax.report`, which joins runs."""
    statistics = read_statistics(run.input("select_pairs", STATISTICS))
    adapter = checksum(run.input("export_adapter") / lora_files.EXPORTED["diffusers"])
    training = {
        "prompts.train_count": statistics["prompts"],
        "pairs": statistics["pairs"],
        **{f"pool.{name}": getattr(experiment.pool, name) for name in ("size", "steps", "guidance")},
        **{
            f"{section}.{name}": value
            for section in ("pairs", "loss", "train")
            for name, value in dataclasses.asdict(getattr(experiment, section)).items()
        },
        "adapter.rank": experiment.adapter.rank,
    }
    return {
        "experiment": run.experiment,
        "settings": comparable_settings(experiment),
        "training": training,
        "prompts": test_prompts(experiment),
        "scores": {name: score.to_dict() for name, score in scores.items()},
        "headline": headline(list(scores)),
        "models": {
            model.name: {
                "label": model.label,
                "adapter": adapter if model.adapter == TUNED else model.adapter,
                "scale": model.scale,
                "latent_normalization": model.latent_normalization,
                "scores": finite_or_none(
                    {name: values.tolist() for name, values in measured[model.name].scores.items()}
                ),
                "colors": dataclasses.asdict(measured[model.name].colors),
                "diversity": measured[model.name].diversity,
            }
            for model in models
        },
        "rank_statistics": statistics["ranks"],
    }


def _report(
    experiment: Experiment,
    run: StageRun,
    models: Sequence[ComparedModel],
    scores: Mapping[str, Score],
    measured: Mapping[str, Measured],
) -> ReportData:
    prompts, (first, second) = test_prompts(experiment), models[:2]
    unusable = [np.isnan(list(values.scores.values())).any(axis=0).sum() for values in measured.values()]
    pair_check, best_pairs, worst_pairs = read_check(run.input("check_pairs"))

    def compared(model: ComparedModel) -> ModelRow:
        return ModelRow(
            label=model.label,
            scores={
                name: compare_scores(
                    measured[model.name].scores[name],
                    measured[first.name].scores[name],
                    label=score.label,
                    description=score.description,
                )
                for name, score in scores.items()
            },
            color_shift=shift_between(measured[first.name].colors, measured[model.name].colors),
            diversity=measured[model.name].diversity,
        )

    def first_scores(model: ComparedModel, row: int) -> dict[str, float]:
        scored = {name: float(values[row, 0]) for name, values in measured[model.name].scores.items()}
        return {name: value for name, value in scored.items() if math.isfinite(value)}

    pictures = zip(prompts, measured[first.name].examples, measured[second.name].examples, strict=False)
    examples = [
        ImagePair(prompt, one, other, first_scores(first, row), first_scores(second, row))
        for row, (prompt, one, other) in enumerate(pictures)
    ]
    return ReportData(
        title=f"{run.experiment}: {second.label} against {first.label}",
        subtitle=f"{len(prompts):,} held-out prompts, {experiment.evaluate.seeds} images each"
        + (f"; {sum(unusable):,} unusable images left out" if sum(unusable) else ""),
        labels=(first.label, second.label),
        headline=headline(list(scores)),
        models=[compared(model) for model in models[1:]],
        diversity=measured[first.name].diversity,
        examples=examples,
        training=read_scalars(run.input("train_policy", LOG)),
        pair_check=pair_check,
        best_pairs=best_pairs,
        worst_pairs=worst_pairs,
        settings=dataclasses.asdict(experiment),
        attribution=plugin_of(experiment.prompts.test)[0].attribution,
    )
