"""Results of an evaluation, and the only writer and reader of results.json."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.color_shift import HSVMeans
from hgdpo_jax.evaluation.measures import About
from hgdpo_jax.evaluation.pair_check import PairCheck
from hgdpo_jax.evaluation.rank_statistics import RankStatistics
from hgdpo_jax.files import write_json

RESULTS = "results.json"
# Increment it when the file's format changes.
_VERSION = 2
Values = Mapping[str, Float[np.ndarray, "prompts seeds"]]


@dataclasses.dataclass(frozen=True)
class ModelResults:
    """What was measured of one model's images: scores and measures by name, colours and diversity.

    Values are NaN where an image is unusable. `adapter` is its LoRA: a file, or the checksum of the experiment's own.
    `pictures` are files beside results.json: the first images of the first prompts.
    """

    label: str
    scores: Values
    measures: Values
    colors: HSVMeans
    diversity: float | None
    adapter: str = ""
    scale: float = 0.0
    latent_normalization: bool = False
    pictures: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Results:
    """An evaluation of several models on the same prompts.

    settings: what decides the images of the base, the scores and the measures.
    headline: the score that reports lead with.
    attribution: whose work the images show, if their weights or prompts come from a plugin.
    training, ranks, pair_check: how the experiment's LoRA was trained, if it trains one.
    """

    experiment: str
    settings: Mapping[str, Any]
    prompts: Sequence[str]
    headline: str
    scores: Mapping[str, About]
    measures: Mapping[str, About]
    models: Mapping[str, ModelResults]
    # Results of earlier versions lack it.
    attribution: str = ""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ranks: RankStatistics | None = None
    pair_check: PairCheck | None = None


def write_results(folder: epath.PathLike, results: Results) -> None:
    """Writes results.json; a value that is NaN becomes null."""
    values = {"version": _VERSION, **dataclasses.asdict(results)}
    # Reports show scores, models and settings in their order.
    write_json(epath.Path(folder) / RESULTS, values, sort_keys=False)


def read_results(folder: epath.PathLike) -> Results:
    """The results in a stage's folder; raises UserError where they are missing, damaged or of another version."""
    path = epath.Path(folder) / RESULTS
    run, stage = path.parent.parent.name, path.parent.name
    command = f"run python -m hgdpo_jax.main --config=FILE --config.name={run} --stage={stage}"
    if not path.is_file():
        raise UserError(f"{path} is missing: {command}, or leave {path.parent.parent} out")
    try:
        values = json.loads(path.read_text())
        found = values.pop("version", 1)
        if found == _VERSION:
            return _parse(values, path.parent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is damaged ({reason}): delete {path.parent} and {command}") from error
    raise UserError(f"{path} has version {found}, expected {_VERSION}: delete {path.parent} and {command}")


def _parse(values: dict[str, Any], folder: epath.Path) -> Results:
    """Raises ValueError, KeyError, TypeError or AttributeError where something is missing or of another type."""
    about = {kind: {name: About(**of) for name, of in values[kind].items()} for kind in ("scores", "measures")}
    models = {}
    for model, of in values["models"].items():
        arrays = {kind: {name: np.array(of[kind][name], np.float64) for name in about[kind]} for kind in about}
        models[model] = ModelResults(**of | arrays | {"colors": HSVMeans(**of["colors"])})
    parsed = {
        "models": models,
        "ranks": RankStatistics(**values["ranks"]) if values["ranks"] else None,
        "pair_check": PairCheck.from_dict(values["pair_check"]) if values["pair_check"] else None,
    }
    results = Results(**values | about | parsed)
    if results.headline not in results.scores:
        raise KeyError(results.headline)
    shapes = set()
    for each in models.values():
        for name, array in [*each.scores.items(), *each.measures.items()]:
            if array.ndim != 2 or len(array) != len(results.prompts) or not np.isfinite(array).any():
                raise ValueError(f"{name} has no numbers of {len(results.prompts)} prompts")
            shapes.add(array.shape)
        if missing := [name for name in each.pictures if not (folder / name).is_file()]:
            raise ValueError(f"{missing[0]} is missing")
    if len(shapes) != 1:
        raise ValueError("models have different numbers of seeds")
    if results.ranks and len({len(value) for value in vars(results.ranks).values() if isinstance(value, list)}) != 1:
        raise ValueError("ranks are not one value each")
    return results
