"""Evaluating the models of an experiment: drawing what is missing of their images, measuring them, and the results."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from hgdpo_jax import plugins
from hgdpo_jax.artifacts import StageRun, fingerprint_of, flat
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.folder_images import FolderImages
from hgdpo_jax.data.pool import Block, Pool, blocks_of
from hgdpo_jax.evaluation.compared_models import TUNED, ComparedModel, compared_models
from hgdpo_jax.evaluation.measures import Measure, headline, load_measures, measure_sources
from hgdpo_jax.evaluation.results import ModelResults, Results
from hgdpo_jax.experiment.drawing import batch_of_block, draw_parts, drawing_of, drawing_settings
from hgdpo_jax.experiment.measuring import ImageSource, measure
from hgdpo_jax.experiment.models import check_base, load_base
from hgdpo_jax.experiment.prompts import prompts_fingerprint, test_prompts
from hgdpo_jax.experiment.scoring import check_scorers, score_fingerprints, scores_of, sources_of
from hgdpo_jax.families.model import Model
from hgdpo_jax.files import checksum
from hgdpo_jax.scorers.sources import ScorerSource
from hgdpo_jax.weights import kinds, lora_files


def models_of(experiment: Experiment) -> list[ComparedModel]:
    """The models that a config compares."""
    return compared_models(experiment.evaluate.models, experiment.adapter.scale, experiment.sample.latent_normalization)


def evaluation_needs(experiment: Experiment) -> tuple[str, ...]:
    """The settings that an evaluation needs."""
    return ("weights.base", "prompts.test", *(() if experiment.evaluate.scorers else ("weights.scorer",)))


def check_evaluation(experiment: Experiment) -> None:
    """Raises UserError where the base, a scorer or a measure cannot be loaded."""
    check_base(experiment)
    check_scorers(experiment)
    for source in _measure_sources(experiment).values():
        source.load()


def check_models(experiment: Experiment) -> None:
    """Raises UserError where a LoRA does not fit the base, or a folder lacks images."""
    base, blocks = check_base(experiment), blocks_of(test_prompts(experiment), experiment.pool.block)
    for model in models_of(experiment):
        if model.folder:
            folder_images(experiment, model, epath.Path()).complete(blocks, experiment.evaluate.seeds)
        elif model.adapter not in ("", TUNED):
            with kinds.placed({"config.evaluate.models": (model.adapter, kinds.LORA)}):
                base.lora_names.load_adapter(model.adapter, base.lora_layers)


def comparable_settings(experiment: Experiment) -> dict:
    """What evaluations in one table must share: all that decides the base's images and what is measured."""
    return {
        "sampler": "DPM-Solver++ (2M)",
        **drawing_settings(experiment),
        **score_fingerprints(experiment),
        **flat({"measures": {name: source.fingerprint() for name, source in _measure_sources(experiment).items()}}),
        "evaluate.seeds": experiment.evaluate.seeds,
        "prompts.test": prompts_fingerprint(test_prompts(experiment)),
    }


def measure_models(
    experiment: Experiment, run: StageRun, models: Sequence[ComparedModel], prompts: Sequence[str], examples: int
) -> tuple[Results, list[np.ndarray]] | None:
    """Draws what is missing of each model's images, measures them, and reads the whole.

    Gives the results, and of each model the first images of the first prompts; None on hosts but the first.
    """
    base, blocks, seeds = load_base(experiment), blocks_of(prompts, experiment.pool.block), experiment.evaluate.seeds
    sources: dict[str, ImageSource] = {
        model.name: folder_images(experiment, model, run.folder / "drawn" / model.name)
        if model.folder
        else _DrawnImages(experiment, run, base, model)
        for model in models
    }
    for source in sources.values():
        source.complete(blocks, seeds)
    # Not before: gigabytes of scorers would lie beside the model while it draws.
    scores, measures = scores_of(experiment), measures_of(experiment)
    limit, both = experiment.pool.unusable_limit, scores | measures
    measured = {name: measure(source, blocks, seeds, both, examples, limit) for name, source in sources.items()}
    adapter = checksum(_own_adapter(run)) if "export_adapter" in run.inputs else ""
    found = {}
    for model in models:
        if (of := measured[model.name]) is None:
            return None
        found[model.name] = ModelResults(
            label=model.label,
            scores={name: of.values[name] for name in scores},
            measures={name: of.values[name] for name in measures},
            colors=of.colors,
            diversity=of.diversity,
            adapter=adapter if model.adapter == TUNED else model.adapter,
            scale=model.scale,
            latent_normalization=model.latent_normalization,
        )
    results = Results(
        experiment=run.experiment,
        settings=comparable_settings(experiment),
        prompts=prompts,
        headline=headline(list(scores)),
        scores={name: score.about for name, score in scores.items()},
        measures={name: measure.about for name, measure in measures.items()},
        models=found,
        attribution=plugins.attribution(
            [experiment.weights.base, experiment.weights.vae], [experiment.prompts.train, experiment.prompts.test]
        ),
    )
    return results, [of.examples for of in measured.values() if of]


def measures_of(experiment: Experiment) -> dict[str, Measure]:
    """The measures of a config by name."""
    pool, prompt = experiment.pool, test_prompts(experiment)[0]
    return load_measures(_measure_sources(experiment), prompt, pool.width, pool.height)


def folder_images(experiment: Experiment, model: ComparedModel, folder: epath.Path) -> FolderImages:
    return FolderImages(model.name, model.folder, folder, experiment.pool.width, experiment.pool.height)


def _measure_sources(experiment: Experiment) -> dict[str, ScorerSource]:
    return measure_sources(experiment.evaluate.measures, sources_of(experiment))


def _own_adapter(run: StageRun) -> epath.Path:
    return run.input("export_adapter") / lora_files.EXPORTED["diffusers"]


class _DrawnImages:
    """Images that this run draws: the base's lie with the pools, where experiments share them, others in the stage."""

    def __init__(self, experiment: Experiment, run: StageRun, base: Model, model: ComparedModel):
        self._experiment, self._base, self._description = experiment, base, f"{run.name}: {model.name}"
        self.name, self._latent_normalization = model.name, model.latent_normalization
        self._adapters = []
        self.folder = run.pools / fingerprint_of(drawing_settings(experiment))
        if model.adapter:
            path = _own_adapter(run) if model.adapter == TUNED else model.adapter
            # A tracer, not a constant: one program serves all LoRA scales.
            self._adapters = [(base.lora_names.load_adapter(path), np.float32(model.scale))]
            self.folder = run.folder / "drawn" / model.name

    def complete(self, blocks: Sequence[Block], seeds: int) -> None:
        pool = Pool(self.folder)

        def draw(missing: Sequence[tuple[Block, int]], images: int) -> None:
            drawing = drawing_of(self._experiment, self._base, self._adapters, self._latent_normalization)
            draw_parts(self._experiment, drawing, pool, missing, images, self._description)

        while pool.latents.make_missing(blocks, seeds, draw):
            pass

    def images(self, block: Block, index: int) -> tuple[np.ndarray, np.ndarray]:
        batch = batch_of_block(self._experiment.pool.device_batch, self._experiment.pool.block)
        return self._base.decode_latents_checked(Pool(self.folder).latents.read(block, index), batch)
