"""Reads the evaluations of runs, and refuses runs that cannot share a table."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float

from hgdpo_jax.artifacts import differences
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.color_shift import shift_between
from hgdpo_jax.evaluation.compared_models import BASE, TUNED
from hgdpo_jax.evaluation.results import RESULTS, ModelResults, Results, read_results
from hgdpo_jax.pages.joined.paper import ROW_LABELS
from hgdpo_jax.pages.joined.progress import EVALUATION, Progress, read_progress

_TUNED_LAN = "tuned_lan"
_SWEEP = "sweep_scale"
_ADVICE = "evaluate both with the same settings, or give one of them"
# The same images by the same scorers give the same numbers.
_BASE_TOLERANCE = 1e-6
# What may differ between the training seeds of a row: the seed, and the number of pairs that it selects.
_SEED_SETTINGS = re.compile(r"(.*\.)?seed|pairs")


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment's evaluation and, if it has one, its sweep over LoRA scales."""

    results: Results
    sweep: Results | None
    progress: Progress

    @property
    def name(self) -> str:
        return self.results.experiment

    @property
    def folder(self) -> epath.Path:
        """Where the evaluation and its pictures are."""
        return self.progress.folder / EVALUATION

    @property
    def sweep_folder(self) -> epath.Path:
        """Where the sweep and its pictures are."""
        return self.progress.folder / _SWEEP

    @property
    def base(self) -> ModelResults:
        """The model without LoRA."""
        return self.results.models[BASE]

    @property
    def row(self) -> str:
        """The run's name without its training seed, "-<digits>"."""
        return re.sub(r"-\d+$", "", self.name)


@dataclasses.dataclass(frozen=True)
class RunModel:
    """A model that a run evaluated."""

    run: Run
    name: str

    @property
    def results(self) -> ModelResults:
        """What was measured of it."""
        return self.run.results.models[self.name]

    @property
    def label(self) -> str:
        """The name of the run, which is also that of its own LoRA, and what else the model is called."""
        return {BASE: BASE, TUNED: self.run.name}.get(self.name, f"{self.run.name}, {self.results.label}")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the paper's tables: an experiment, and the runs of its training seeds, each with its model."""

    name: str
    members: Sequence[tuple[Run, ModelResults]]

    @property
    def label(self) -> str:
        """The paper's name for it."""
        return ROW_LABELS[self.name]

    def scores(self, name: str) -> Float[np.ndarray, "prompts seeds"]:
        """Scores of all training seeds side by side: the mean within a prompt is over training and drawing seeds."""
        return np.concatenate([model.scores[name] for _, model in self.members], axis=1)

    def absolute_shifts(self, channel: str) -> list[float]:
        """Colour shift of each training seed against the base, in per cent and without its sign, as in the paper."""
        return [abs(shift_between(run.base.colors, model.colors).percent[channel]) for run, model in self.members]


def read_runs(folders: Sequence[epath.PathLike]) -> list[Run]:
    """The runs in these folders, WORKDIR/runs/NAME each, in their order; one that is named twice counts once.

    Raises UserError where one is missing or damaged, or two of them are not comparable.
    """
    paths = dict.fromkeys(epath.Path(folder).expanduser().resolve() for folder in folders)
    runs: list[Run] = []
    for path in paths:
        run = _read_run(path)
        if run.name in [other.name for other in runs]:
            raise UserError(f"two runs are called {run.name}, one in {path}: give one of them")
        if runs:
            _refuse_differences(runs[0], run)
        runs.append(run)
    sweeps = [run.sweep for run in runs if run.sweep]
    for sweep in sweeps[1:]:
        _refuse_settings(_SWEEP, sweeps[0], sweep)
    return runs


def models_of(runs: Sequence[Run]) -> list[RunModel]:
    """All models but the base; one that several runs evaluated, such as a folder's images, once."""
    found: list[RunModel] = []
    for run in runs:
        for name in run.results.models:
            model = RunModel(run, name)
            if name == TUNED or (name != BASE and not any(_is_same(model.results, each.results) for each in found)):
                found.append(model)
    return found


def rows_of(runs: Sequence[Run]) -> dict[str, Row]:
    """The paper's rows that the runs fill, in the paper's order; N-20-LAN may come from N-20's runs.

    Raises UserError where two runs of a row hold one LoRA.
    """
    rows = {}
    for name in ROW_LABELS:
        if name == "n20_lan":
            members = _members(runs, name, _normalized) or _members(runs, "n20", _normalized)
        else:
            members = _members(runs, name, lambda run: run.results.models.get(TUNED))
        if members:
            _refuse_repetition(members)
            rows[name] = Row(name, members)
    return rows


def training_differences(members: Sequence[Run]) -> list[str]:
    """Names of the training settings in which these runs differ."""
    training = [run.results.training for run in members]
    names = dict.fromkeys(name for each in training for name in each)
    return [name for name in names if any(each.get(name) != training[0].get(name) for each in training)]


def is_seed(name: str) -> bool:
    """Whether a training setting may differ between the training seeds of a row."""
    return bool(_SEED_SETTINGS.fullmatch(name))


def _is_same(model: ModelResults, other: ModelResults) -> bool:
    """Whether two runs evaluated one model."""
    return (model.label, model.adapter, model.scale) == (other.label, other.adapter, other.scale) and all(
        np.array_equal(values, other.scores[name], equal_nan=True) for name, values in model.scores.items()
    )


def _members(
    runs: Sequence[Run], row: str, model_of: Callable[[Run], ModelResults | None]
) -> list[tuple[Run, ModelResults]]:
    """The runs of a row that have such a model, with it."""
    return [(run, model) for run in runs if run.row == row and (model := model_of(run))]


def _normalized(run: Run) -> ModelResults | None:
    """The model that was drawn with latent normalisation, where the run has one."""
    models = (run.results.models.get(name) for name in (_TUNED_LAN, TUNED))
    return next((model for model in models if model and model.latent_normalization), None)


def _refuse_repetition(members: Sequence[tuple[Run, ModelResults]]) -> None:
    seen: dict[str, str] = {}
    for run, model in members:
        if model.adapter in seen:
            raise UserError(f"{seen[model.adapter]} and {run.name} hold the same LoRA: give one of them")
        seen[model.adapter] = run.name


def _refuse_differences(first: Run, other: Run) -> None:
    """Raises UserError where two runs did not evaluate the same base on the same prompts by the same scores."""
    one, two = first.results, other.results
    _refuse_settings(EVALUATION, one, two)
    if one.prompts != two.prompts:
        raise UserError(f"{first.name} and {other.name} were evaluated on different prompts: {_ADVICE}")
    for name, about in one.scores.items():
        values, others = first.base.scores[name], other.base.scores[name]
        same = values.shape == others.shape and np.array_equal(np.isnan(values), np.isnan(others))
        apart = float(np.nanmax(np.abs(values - others))) if same else math.inf
        if apart > _BASE_TOLERANCE:
            raise UserError(
                f"the base's scores by {about.label} differ between {first.name} and {other.name} by up to "
                f"{apart:.3g}, so their base images are not the same: {_ADVICE}"
            )


def _refuse_settings(stage: str, first: Results, other: Results) -> None:
    """Raises UserError where two results of a stage do not come from the same settings, scores and measures."""
    before, now = (
        {**each.settings, "headline": each.headline, "scores": sorted(each.scores), "measures": sorted(each.measures)}
        for each in (first, other)
    )
    if changed := differences(before, now):
        raise UserError(
            f"{stage} of {first.experiment} and {other.experiment} ran with different settings: {', '.join(changed)}; "
            f"{_ADVICE}"
        )


def _read_run(folder: epath.Path) -> Run:
    progress = read_progress(folder)
    results, sweep = read_results(folder / EVALUATION), folder / _SWEEP
    if BASE not in results.models:
        raise UserError(
            f"{results.experiment} was evaluated without the base: put {BASE} in config.evaluate.models, or leave "
            f"{folder} out"
        )
    return Run(results, read_results(sweep) if (sweep / RESULTS).is_file() else None, progress)
