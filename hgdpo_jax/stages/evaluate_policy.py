"""Compares models on held-out prompts, from the same noise, by every score, and writes the report (HG-DPO, Sec. 4)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.artifacts import StageRun, flat
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError, naming
from hgdpo_jax.evaluation.compared_models import TUNED, ComparedModel
from hgdpo_jax.evaluation.pair_check import read_check
from hgdpo_jax.evaluation.pool_statistics import STATISTICS, read_statistics
from hgdpo_jax.evaluation.rank_statistics import RankStatistics
from hgdpo_jax.evaluation.results import Results, write_results
from hgdpo_jax.experiment.evaluating import (
    check_evaluation,
    check_models,
    comparable_settings,
    evaluation_needs,
    folder_images,
    measure_models,
    measures_of,
    models_of,
)
from hgdpo_jax.experiment.prompts import number_of_prompts, test_prompts
from hgdpo_jax.experiment.relevant_settings import relevant_settings
from hgdpo_jax.experiment.scoring import rehearse_scorers
from hgdpo_jax.files import expanded, similar, write_bytes
from hgdpo_jax.pages.pictures import RANKED, RankedImages, read_ranked, read_shown_pairs, webp_bytes
from hgdpo_jax.pages.run_report import RunReport, example_pairs, write_report
from hgdpo_jax.run_log import LOG, read_scalars
from hgdpo_jax.settings import decisive
from hgdpo_jax.weights import lora_files
from hgdpo_jax.weights.tensor_files import load_tensors

EVERY_HOST = True
_EXAMPLES = 24
# Pictures that reports on many runs show side by side.
_PICTURES, _PICTURE_HEIGHT = 8, 384


def inputs(experiment: Experiment) -> tuple[str, ...]:
    """The experiment's own LoRA, if it is compared, and the stages of its training that the report describes."""
    trained = [name for name in ("select_pairs", "check_pairs", "train_policy") if name in experiment.stages]
    return (*trained, "export_adapter") if any(model.adapter == TUNED for model in models_of(experiment)) else ()


needs = evaluation_needs


def settings(experiment: Experiment) -> dict:
    models = {model.name: _model_settings(experiment, model) for model in models_of(experiment)}
    return {**comparable_settings(experiment), "models": models}


def _model_settings(experiment: Experiment, model: ComparedModel) -> dict[str, Any]:
    """The settings that decide the images of a model."""
    if model.folder:
        with naming("config.evaluate.models"):
            return {"folder": folder_images(experiment, model, epath.Path()).fingerprint}
    adapter = model.adapter
    if adapter not in ("", TUNED):
        if not expanded(adapter).exists():
            hint = f": did you mean {near}?" if (near := similar(adapter)) else ", expected a LoRA's file or folder"
            raise UserError(f"config.evaluate.models has {model.text!r}, and {adapter} does not exist{hint}")
        adapter = lora_files.adapter_fingerprint(adapter)
    return {"adapter": adapter, "scale": model.scale, "latent_normalization": model.latent_normalization}


def plan(experiment: Experiment, run: StageRun) -> str:
    names = ", ".join(model.name for model in models_of(experiment))
    return f"{number_of_prompts(experiment, 'test'):,} prompts x {experiment.evaluate.seeds} images: {names}"


def check(experiment: Experiment) -> None:
    """Raises UserError if base, scorers, measures, LoRAs or folders cannot be what the evaluation needs."""
    check_evaluation(experiment)
    check_models(experiment)


def rehearse(experiment: Experiment) -> None:
    """Raises UserError if a scorer or measure of the user's own fails on a black picture."""
    measures_of(experiment)
    if "check_pairs" not in inputs(experiment):
        rehearse_scorers(experiment)


def run(experiment: Experiment, run: StageRun) -> None:
    found = measure_models(experiment, run, models_of(experiment), test_prompts(experiment), _EXAMPLES)
    if not found:
        return
    results, images = _trained(experiment, run, _with_pictures(run.folder, *found)), found[1]
    write_results(run.folder, results)
    changed, defaults = relevant_settings(experiment)
    report = RunReport(
        results,
        example_pairs(results, *images[:2]),
        training=read_scalars(run.input("train_policy", LOG)) if "train_policy" in run.inputs else (),
        exported_step=_exported_step(run),
        pairs=read_shown_pairs(run.input("check_pairs")) if "check_pairs" in run.inputs else {},
        ranked=_ranked(run),
        settings=changed,
        defaults=defaults,
        made=run.made,
    )
    write_report(run.folder / "report", report)
    print(report, flush=True)


def _exported_step(run: StageRun) -> int | None:
    """The step whose LoRA is the experiment's own, if it is compared."""
    if "export_adapter" not in run.inputs:
        return None
    name = lora_files.EXPORTED["diffusers"]
    step = load_tensors(run.input("export_adapter", name) / name)[1].get("step")
    return int(step) if step else None


def _ranked(run: StageRun) -> list[RankedImages]:
    """The pool's pictures by rank; [] where no pairs were selected, or by an earlier version, which wrote none."""
    if "select_pairs" not in run.inputs or not (run.inputs["select_pairs"].folder / RANKED).is_file():
        return []
    folder = run.input("select_pairs", RANKED)
    ranked = read_ranked(folder)
    run.input("select_pairs", RANKED, *(str(path.relative_to(folder)) for row in ranked for path in row.pictures))
    return ranked


def _with_pictures(folder: epath.Path, results: Results, images: Sequence[np.ndarray]) -> Results:
    """The results with the first pictures of each model, which it writes beside them."""
    models = {}
    for (name, model), shown in zip(results.models.items(), images, strict=True):
        pictures = [f"pictures/{name}-{row}.webp" for row in range(len(shown[:_PICTURES]))]
        for picture, image in zip(pictures, shown, strict=False):
            write_bytes(folder / picture, webp_bytes(image, _PICTURE_HEIGHT))
        models[name] = dataclasses.replace(model, pictures=pictures)
    return dataclasses.replace(results, models=models)


def _trained(experiment: Experiment, run: StageRun, results: Results) -> Results:
    """The results with the training, the pool's statistics and the pair check of the experiment's LoRA."""
    ranks = None
    training: dict[str, Any] = {}
    if "train_policy" in run.inputs:
        objective = experiment.objective
        training = flat(
            {
                "pool": {"size": experiment.pool.size, **decisive(experiment.sampling)},
                "pairs": {"filter": experiment.pairs.filter, **decisive(experiment.pairs)},
                "train": decisive(experiment.train),
                "objective": objective.name(),
                objective.name(): decisive(objective),
                "adapter.rank": experiment.adapter.rank,
            }
        )
    if "select_pairs" in run.inputs:
        statistics = read_statistics(run.input("select_pairs", STATISTICS))
        training |= {"prompts.train_count": statistics["prompts"], "pairs": statistics["pairs"]}
        ranks = RankStatistics(**statistics["ranks"]) if statistics["ranks"] else None
    check = read_check(run.input("check_pairs")) if "check_pairs" in run.inputs else None
    return dataclasses.replace(results, training=training, ranks=ranks, pair_check=check)
