"""Compares winners and losers by every score before training, as decoded from the latents that training reads."""

import dataclasses

import numpy as np

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.pairs import open_pairs
from hgdpo_jax.data.unusable import Unusable, pair_of
from hgdpo_jax.evaluation.measures import TRAINING
from hgdpo_jax.evaluation.pair_check import CHECK, MOST_PAIRS, check_pairs
from hgdpo_jax.experiment.models import base_fingerprints, load_autoencoder, name_of
from hgdpo_jax.experiment.scoring import check_scorers, score_fingerprints, scores_of
from hgdpo_jax.files import write_bytes, write_json
from hgdpo_jax.pages.pictures import SHOWN, png_bytes
from hgdpo_jax.run_log import progress

INPUTS = ("select_pairs",)
NEEDS = ("weights.scorer",)
_CHUNK_PAIRS = 64
_SHOWN = 8
_SIDES = ("winner", "loser")


def settings(experiment: Experiment) -> dict:
    return {
        "dtype": experiment.dtype,
        **base_fingerprints(experiment),
        **score_fingerprints(experiment),
    }


check = check_scorers


def plan(experiment: Experiment, run: StageRun) -> str:
    return f"at most {MOST_PAIRS:,} pairs decoded and scored"


def run(experiment: Experiment, run: StageRun) -> None:
    pairs = open_pairs(run.local_input("select_pairs"))
    model, scores = load_autoencoder(experiment), scores_of(experiment)
    # Evenly spaced in a larger data set.
    rows = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_PAIRS)).astype(int)
    values = {side: {name: np.zeros(len(rows)) for name in scores} for side in _SIDES}
    unusable = Unusable(experiment.pool.unusable_limit, 2 * len(rows))

    def images_of(side: str, chosen) -> tuple[np.ndarray, np.ndarray]:
        latents = np.stack([pairs[int(row)][f"{side}_latents"] for row in chosen])
        return model.decode_latents_checked(latents, experiment.pool.device_batch)

    prompts = [pairs[int(row)]["prompt"] for row in rows]
    with progress(total=2 * len(rows), description="check_pairs", unit="image") as bar:
        for start in range(0, len(rows), _CHUNK_PAIRS):
            chunk = slice(start, start + _CHUNK_PAIRS)
            for side in _SIDES:
                images, decoded = images_of(side, rows[chunk])
                finite = {f"the pictures that {name_of(experiment, 'autoencoder')} decodes": decoded}
                for name, score in scores.items():
                    values[side][name][chunk] = np.where(decoded, score.function(images, prompts[chunk]), np.nan)
                    finite[f"the scores of {name}"] = np.isfinite(values[side][name][chunk])
                unusable.add(finite, pair_of(prompts[chunk]))
                bar.update(len(images))
    unusable.warn()
    compared = np.isfinite([table for side in _SIDES for table in values[side].values()]).all(axis=0)
    unusable.require_rest(compared.sum())
    rows, prompts = rows[compared], [prompts[i] for i in np.flatnonzero(compared)]
    values = {side: {name: table[compared] for name, table in tables.items()} for side, tables in values.items()}

    labels = {name: score.about.label for name, score in scores.items()}
    check = check_pairs(values["winner"], values["loser"], labels)
    write_json(run.folder / CHECK, dataclasses.asdict(check))
    furthest_first = np.argsort(values["loser"][TRAINING] - values["winner"][TRAINING], kind="stable")
    half = min(_SHOWN, (len(rows) + 1) // 2)
    shown = {}
    for kind, chosen in (("best", furthest_first[:half]), ("worst", furthest_first[half:][::-1][:_SHOWN])):
        places = {i: f"images/{kind}-{place}" for place, i in enumerate(chosen)}
        for side in _SIDES if places else ():
            for name, image in zip(places.values(), images_of(side, rows[chosen])[0], strict=True):
                write_bytes(run.folder / f"{name}-{side}.png", png_bytes(image))
        shown[kind] = [
            {
                side: {
                    "image": f"{name}-{side}.png",
                    "scores": {score: float(table[i]) for score, table in values[side].items()},
                }
                for side in _SIDES
            }
            | {"prompt": prompts[i]}
            for i, name in places.items()
        ]
    write_json(run.folder / SHOWN, shown)
    print(check, flush=True)
