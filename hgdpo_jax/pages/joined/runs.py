"""What evaluations left behind, read, and refused where runs cannot share a table."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.color_shift import ColorShift, HSVMeans, shift_between
from hgdpo_jax.pages.joined.paper import ROW_LABELS

BASE, TUNED, TUNED_LAN = "base", "tuned", "tuned_lan"
_RESULTS = "results.json"
_EVALUATION, _SWEEP = "evaluate_policy", "sweep_scale"
# The same images by the same scorers give the same numbers.
_BASE_TOLERANCE = 1e-6
# What may differ between the training seeds of a row: the seed, and how many pairs were left to it.
_SEED_SETTINGS = re.compile(r"(.*\.)?seed|pairs")


@dataclasses.dataclass(frozen=True)
class ScoreName:
    """A score's kind (a key of `paper.SCORE_COLUMNS`, or "function") and how people call it."""

    kind: str
    label: str
    description: str


@dataclasses.dataclass(frozen=True)
class Model:
    """What was measured of one model: scores [prompts, seeds] by name, and its images' colours and diversity.

    A score is NaN where the image is unusable.
    """

    label: str
    scores: Mapping[str, Float[np.ndarray, "prompts seeds"]]
    colors: HSVMeans
    diversity: float | None
    adapter: str
    latent_normalization: bool


@dataclasses.dataclass(frozen=True)
class RankStatistics:
    """Cosine distances between the latents' channel statistics of the best and the n-th best image (Fig. 5b).

    Means over the pools of `prompts` prompts, one value a rank, with standard errors; NaN where there are none.
    """

    prompts: int
    ranks: Sequence[int]
    mean_distance: Float[np.ndarray, " ranks"]
    mean_distance_error: Float[np.ndarray, " ranks"]
    deviation_distance: Float[np.ndarray, " ranks"]
    deviation_distance_error: Float[np.ndarray, " ranks"]


@dataclasses.dataclass(frozen=True)
class ScalePoint:
    """One weight of the LoRA: by score the mean and the win rate over weight 0 with its interval, and the diversity."""

    scale: float
    means: Mapping[str, float]
    win_rates: Mapping[str, tuple[float, float, float]]
    diversity: float | None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Images at several weights of the LoRA (Fig. 8); `images` are files, one row a prompt, one column a scale."""

    settings: Mapping[str, Any]
    headline: str
    points: Sequence[ScalePoint]
    grid_scales: Sequence[float]
    grid_prompts: Sequence[str]
    images: Sequence[Sequence[epath.Path]]


@dataclasses.dataclass(frozen=True)
class Run:
    """One experiment's evaluation; `settings` are those of drawing and scoring, `training` those of its LoRA."""

    name: str
    settings: Mapping[str, Any]
    training: Mapping[str, Any]
    prompts: Sequence[str]
    scores: Mapping[str, ScoreName]
    headline: str
    models: Mapping[str, Model]
    rank_statistics: RankStatistics | None
    sweep: Sweep | None = None

    @property
    def base(self) -> Model:
        """The model without LoRA."""
        return self.models[BASE]

    @property
    def row(self) -> str:
        """The run's name without its training seed, "-<digits>"."""
        return re.sub(r"-\d+$", "", self.name)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the paper's tables: the same experiment with one or several training seeds, a run and its model each."""

    name: str
    members: Sequence[tuple[Run, Model]]

    @property
    def label(self) -> str:
        """How the paper calls it."""
        return ROW_LABELS[self.name]

    def scores(self, name: str) -> Float[np.ndarray, "prompts seeds"]:
        """Those of all training seeds side by side, so that the mean within a prompt is over both kinds of seed."""
        return np.concatenate([model.scores[name] for _, model in self.members], axis=1)

    def color_shifts(self) -> list[ColorShift]:
        """The colour shift against the base of each training seed."""
        return [shift_between(run.base.colors, model.colors) for run, model in self.members]


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
    sweeps = [run for run in runs if run.sweep]
    for run in sweeps[1:]:
        assert run.sweep and sweeps[0].sweep
        _refuse_settings(sweeps[0].name, sweeps[0].sweep.settings, run.name, run.sweep.settings, _SWEEP)
    return runs


def rows_of(runs: Sequence[Run]) -> dict[str, Row]:
    """The paper's rows that the runs fill, in the paper's order; N-20-LAN may come from N-20's runs.

    Raises UserError where two runs of a row hold one LoRA.
    """
    rows = {}
    for name in ROW_LABELS:
        members = [(run, run.models[TUNED]) for run in runs if run.row == name and TUNED in run.models]
        if name == "n20_lan":
            members = _normalized(runs, name) or _normalized(runs, "n20")
        if members:
            _refuse_repetition(members)
            rows[name] = Row(name, members)
    return rows


def training_differences(members: Sequence[Run]) -> list[str]:
    """Names of the training settings, seeds left out, in which these runs differ."""
    names = dict.fromkeys(name for run in members for name in run.training)
    return [
        name
        for name in names
        if not _SEED_SETTINGS.fullmatch(name)
        and any(run.training.get(name) != members[0].training.get(name) for run in members)
    ]


def _normalized(runs: Sequence[Run], row: str) -> list[tuple[Run, Model]]:
    """Of each run of a row the model that was drawn with latent normalisation, where it has one."""
    members = []
    for run in runs:
        found = [run.models[name] for name in (TUNED_LAN, TUNED) if name in run.models]
        found = [model for model in found if model.latent_normalization]
        if run.row == row and found:
            members.append((run, found[0]))
    return members


def _refuse_repetition(members: Sequence[tuple[Run, Model]]) -> None:
    seen: dict[str, str] = {}
    for run, model in members:
        if model.adapter in seen:
            raise UserError(f"{seen[model.adapter]} and {run.name} hold the same LoRA: give one of them")
        seen[model.adapter] = run.name


def _refuse_differences(first: Run, other: Run) -> None:
    """Raises UserError where two runs did not evaluate the same base on the same prompts by the same scores."""
    _refuse_settings(
        first.name,
        {**first.settings, "headline": first.headline, "scores": sorted(first.scores)},
        other.name,
        {**other.settings, "headline": other.headline, "scores": sorted(other.scores)},
        _EVALUATION,
    )
    advice = "evaluate both with the same settings, or give one of them"
    if list(first.prompts) != list(other.prompts):
        raise UserError(f"{first.name} and {other.name} were evaluated on different prompts: {advice}")
    for name, label in first.scores.items():
        one, two = first.base.scores[name], other.base.scores[name]
        same = one.shape == two.shape and np.array_equal(np.isnan(one), np.isnan(two))
        apart = float(np.nanmax(np.abs(one - two))) if same else math.inf
        if apart > _BASE_TOLERANCE:
            raise UserError(
                f"the base's scores by {label.label} differ between {first.name} and {other.name} by up to "
                f"{apart:.3g}, so their base images are not the same: {advice}"
            )


def _refuse_settings(
    first: str, first_settings: Mapping[str, Any], other: str, other_settings: Mapping[str, Any], stage: str
) -> None:
    names = [*first_settings, *(name for name in other_settings if name not in first_settings)]
    changed = [
        f"{name} {_shown(first_settings, name)} and {_shown(other_settings, name)}"
        for name in names
        if first_settings.get(name) != other_settings.get(name)
    ]
    if changed:
        raise UserError(
            f"{stage} of {first} and {other} ran with different settings: {', '.join(changed)}; "
            "evaluate both with the same settings, or give one of them"
        )


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "(none)"


def _read_run(folder: epath.Path) -> Run:
    path = folder / _EVALUATION / _RESULTS
    command = f"python -m hgdpo_jax.main --config=FILE --config.name={folder.name}"
    if not folder.is_dir():
        raise UserError(f"there is no run in {folder}, expected a folder WORKDIR/runs/NAME")
    if not path.is_file():
        raise UserError(f"{path} is missing: run {command}, or leave {folder} out")
    try:
        values = json.loads(path.read_text())
        run = _parse_run(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error, command) from error
    return dataclasses.replace(run, sweep=_read_sweep(folder / _SWEEP, list(run.scores)))


def _read_sweep(folder: epath.Path, scores: Sequence[str]) -> Sweep | None:
    path = folder / _RESULTS
    if not path.is_file():
        return None
    try:
        return _parse_sweep(json.loads(path.read_text()), folder, scores)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        command = f"python -m hgdpo_jax.main --config=FILE --config.name={folder.parent.name} --stage={_SWEEP}"
        raise _damaged(path, error, command) from error


def _damaged(path: epath.Path, error: Exception, command: str) -> UserError:
    reason = f"no {error}" if isinstance(error, KeyError) else str(error)
    return UserError(f"{path} is damaged ({reason}): delete {path.parent} and run {command}")


def _parse_run(values: Mapping[str, Any]) -> Run:
    prompts, scores = [str(prompt) for prompt in values["prompts"]], _parse_score_names(values["scores"])
    models = {name: _parse_model(model, scores, len(prompts)) for name, model in values["models"].items()}
    for needed, there in ((BASE, models), (values["headline"], scores)):
        if needed not in there:
            raise KeyError(needed)
    if len({shape for model in models.values() for shape in (array.shape for array in model.scores.values())}) > 1:
        raise ValueError("models have different numbers of seeds")
    return Run(
        name=str(values["experiment"]),
        settings=dict(values["settings"]),
        training=dict(values["training"]),
        prompts=prompts,
        scores=scores,
        headline=values["headline"],
        models=models,
        rank_statistics=_parse_ranks(values["rank_statistics"]) if values["rank_statistics"] else None,
    )


def _parse_score_names(values: Mapping[str, Any]) -> dict[str, ScoreName]:
    return {name: ScoreName(score["kind"], score["label"], score["description"]) for name, score in values.items()}


def _parse_model(values: Mapping[str, Any], scores: Mapping[str, ScoreName], prompts: int) -> Model:
    arrays = {name: np.array(values["scores"][name], np.float64) for name in scores}
    for name, array in arrays.items():
        # null, for an image that is unusable, is NaN.
        if array.ndim != 2 or len(array) != prompts or np.isinf(array).any() or not np.isfinite(array).any():
            raise ValueError(f"scores {name} are not finite numbers of {prompts} prompts")
    return Model(
        label=str(values["label"]),
        scores=arrays,
        colors=HSVMeans(**{name: float(value) for name, value in values["colors"].items()}),
        diversity=None if values["diversity"] is None else float(values["diversity"]),
        adapter=str(values.get("adapter", "")),
        latent_normalization=bool(values.get("latent_normalization", False)),
    )


def _parse_ranks(values: Mapping[str, Any]) -> RankStatistics:
    arrays = {
        name: np.array(values[name], np.float64)
        for name in ("mean_distance", "mean_distance_error", "deviation_distance", "deviation_distance_error")
    }
    ranks = [int(rank) for rank in values["ranks"]]
    if not ranks or any(array.shape != (len(ranks),) for array in arrays.values()):
        raise ValueError("rank_statistics are not one value a rank")
    return RankStatistics(prompts=int(values["prompts"]), ranks=ranks, **arrays)


def _parse_sweep(values: Mapping[str, Any], folder: epath.Path, scores: Sequence[str]) -> Sweep:
    points, grid = [], values["grid"]
    for point in values["points"]:
        rates = {name: point["scores"][name]["win_rate"] for name in scores}
        points.append(
            ScalePoint(
                scale=float(point["scale"]),
                means={name: float(point["scores"][name]["mean"]) for name in scores},
                win_rates={name: (float(r["rate"]), float(r["low"]), float(r["high"])) for name, r in rates.items()},
                diversity=None if point["diversity"] is None else float(point["diversity"]),
            )
        )
    if not points:
        raise ValueError("no points")
    if values["headline"] not in scores:
        raise KeyError(values["headline"])
    images = [[folder / name for name in row] for row in grid["images"]]
    if len(images) != len(grid["prompts"]) or any(len(row) != len(grid["scales"]) for row in images):
        raise ValueError("the grid is not one image a prompt and scale")
    if missing := [path for row in images for path in row if not path.is_file()]:
        raise ValueError(f"{missing[0].name} is missing")
    return Sweep(
        settings=dict(values["settings"]),
        headline=values["headline"],
        points=points,
        grid_scales=[float(scale) for scale in grid["scales"]],
        grid_prompts=[str(prompt) for prompt in grid["prompts"]],
        images=images,
    )
