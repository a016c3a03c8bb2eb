"""Trains a preference scorer of PickScore's architecture and objective on pairs of toon portraits."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from etils import epath

from hgdpo_jax import losses
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.models import base_fingerprints, load_base
from hgdpo_jax.files import expanded, write_json
from hgdpo_jax.models.parameters import apply
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.toon.damage import FAMILIES
from hgdpo_jax.toon.fit import fit
from hgdpo_jax.toon.preferences import KINDS, make_preferences
from hgdpo_jax.toon.settings import ScorerTraining
from hgdpo_jax.toon.vocabulary import crop_padding
from hgdpo_jax.weights import clip_files, folders
from hgdpo_jax.weights.conversion import from_tree, to_tree

INPUTS = ("train_clip",)
plan = ScorerTraining.plan
_HELD_OUT = 200


def settings(experiment: Experiment) -> dict:
    return base_fingerprints(experiment) | ScorerTraining.decisive(experiment)


def check(experiment: Experiment) -> None:
    """Raises UserError where weights of earlier steps of the base's training are missing."""
    for path in _weaker_files(experiment):
        if not path.is_file():
            raise UserError(f"{path} does not exist: run configs/toon_base.py first, or set config.weights.base")


def run(experiment: Experiment, run: StageRun) -> None:
    options = ScorerTraining.of(experiment)
    folder = run.input("train_clip") / "clip"
    start = PickScore.load(folder, framing="pad")
    base = load_base(experiment, "float32")
    weaker = [
        base.with_denoiser(to_tree(folders.load_tensors(path)[0], base.parameters["denoiser"], where=str(path)))
        for path in _weaker_files(experiment)
    ]
    make = functools.partial(make_preferences, base, weaker, faults=FAMILIES[options.damage], seed=experiment.seed)
    pairs = make(split="train", first=options.first_portrait, count=options.portraits, samples=options.samples)
    held_out = make(split="validation", first=0, count=_HELD_OUT, samples=_HELD_OUT // 2)
    token_ids = crop_padding(start.tokenize(pairs.prompts))

    def loss_function(parameters, _, batch):
        ids, better, worse = batch
        pixels = start.preprocess(jnp.concatenate([better, worse]))
        text, image, logit_scale = apply(start.clip, parameters, ids, pixels)
        scale, (image_better, image_worse) = jnp.exp(logit_scale), jnp.split(image, 2)
        score_better = scale * jnp.sum(text * image_better, axis=-1)
        score_worse = scale * jnp.sum(text * image_worse, axis=-1)
        preference = losses.preference(score_better, score_worse, jnp.ones(len(ids))).mean()
        contrastive = losses.contrastive(text, image_better, scale).mean()
        loss = preference + options.contrastive_weight * contrastive
        return loss, {"preference_loss": preference, "accuracy": (score_better > score_worse).mean()}

    def draw_batch(random, _):
        kinds = random.choice(list(KINDS), size=options.batch_size, p=list(KINDS.values()))
        rows, better, worse = pairs.draw(kinds, random)
        return token_ids[rows], better, worse

    trained = fit(loss_function, start.parameters, draw_batch, run, options, experiment.seed)
    files = dataclasses.replace(clip_files.read_folder(folder), tensors=from_tree(trained))
    clip_files.write_folder(run.folder / "scorer", files, storage="float16")
    scorer = PickScore.load(run.folder / "scorer", framing="pad")
    accuracy = {}
    for i, kind in enumerate(KINDS):
        rows, better, worse = held_out.draw([kind] * _HELD_OUT, np.random.default_rng((experiment.seed, i)))
        prompts = [held_out.prompts[row] for row in rows]
        right = scorer.score(better, prompts, 50) > scorer.score(worse, prompts, 50)
        accuracy[kind] = round(float(right.mean()), 4)
    write_json(run.folder / "scorer" / "accuracy.json", accuracy)


def _weaker_files(experiment: Experiment) -> list[epath.Path]:
    folder = expanded(experiment.weights.base).parent
    return [folder / f"unet-{step}.safetensors" for step in ScorerTraining.of(experiment).weaker_steps]
