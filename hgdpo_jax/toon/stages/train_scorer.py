"""Trains a preference scorer of PickScore's architecture and objective on pairs of toon portraits."""

import jax.numpy as jnp
import numpy as np
from etils import epath

from hgdpo_jax import losses
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.models import base_fingerprints, load_base
from hgdpo_jax.families.model import Model
from hgdpo_jax.files import expanded, write_json
from hgdpo_jax.run_log import progress
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.scorers.preprocess import preprocess
from hgdpo_jax.settings import decisive
from hgdpo_jax.toon import damage
from hgdpo_jax.toon.fit import fit
from hgdpo_jax.toon.preferences import KINDS, make_preferences
from hgdpo_jax.toon.settings import ScorerTraining, section
from hgdpo_jax.toon.vocabulary import crop_padding
from hgdpo_jax.weights import clip_files, folders
from hgdpo_jax.weights.conversion import from_tree, to_tree

INPUTS = ("train_clip",)
_HELD_OUT = 200


def settings(experiment: Experiment) -> dict:
    return {"seed": experiment.seed, **base_fingerprints(experiment), **decisive(_options(experiment))}


def check(experiment: Experiment) -> None:
    """Raises UserError where the earlier steps of the base's training are not beside it."""
    for path in _weaker_files(experiment):
        if not path.is_file():
            raise UserError(f"{path} does not exist: run configs/toon_base.py first, or set config.weights.base")


def plan(experiment: Experiment, run: StageRun) -> str:
    options = _options(experiment)
    return f"{options.steps} steps of {options.batch_size} pairs"


def run(experiment: Experiment, run: StageRun) -> None:
    options = _options(experiment)
    start = PickScore.load(run.input("train_clip") / "clip", framing="pad")
    kinds = getattr(damage, options.damage)
    base = load_base(experiment, "float32")
    weaker = [_earlier(base, path) for path in _weaker_files(experiment)]

    drawn = 2 * options.samples + _HELD_OUT
    with progress(total=drawn, description="train_scorer: samples", unit="image") as bar:
        common = {"kinds": kinds, "seed": experiment.seed, "report": bar.update}
        pairs = make_preferences(
            base,
            weaker,
            split="train",
            first=options.first_portrait,
            count=options.portraits,
            samples=options.samples,
            **common,
        )
        held_out = make_preferences(
            base, weaker, split="validation", first=0, count=_HELD_OUT, samples=_HELD_OUT // 2, **common
        )
    token_ids = crop_padding(start.tokenize(pairs.prompts))

    def scores_of(parameters, ids, pixels):
        inputs = preprocess(pixels, start.clip.config.vision.image_size, "pad", start.mean, start.deviation)
        text, image, logit_scale = start.clip.apply({"params": parameters}, ids, inputs)
        return text, jnp.split(image, 2), jnp.exp(logit_scale)

    def loss_function(parameters, _, batch):
        ids, better, worse = batch
        text, (image_better, image_worse), scale = scores_of(parameters, ids, jnp.concatenate([better, worse]))
        score_better = scale * jnp.sum(text * image_better, axis=-1)
        score_worse = scale * jnp.sum(text * image_worse, axis=-1)
        preference = losses.preference(score_better, score_worse, jnp.ones(len(ids))).mean()
        contrastive = losses.contrastive(text, image_better, scale).mean()
        loss = preference + options.contrastive_weight * contrastive
        return loss, {"preference_loss": preference, "accuracy": (score_better > score_worse).mean()}

    names, shares = list(KINDS), np.array(list(KINDS.values()))

    def batch_at(step):
        random = np.random.default_rng((experiment.seed, step))
        chosen = random.choice(names, size=options.batch_size, p=shares)
        rows, better, worse = zip(*(pairs.pair(str(kind), random) for kind in chosen), strict=True)
        return token_ids[list(rows)], np.stack(better), np.stack(worse)

    trained = fit(
        loss_function,
        start.parameters,
        batch_at,
        run,
        options,
        warmup_steps=options.steps // 20,
    )
    folder = run.folder / "scorer"
    files = clip_files.read_folder(run.input("train_clip") / "clip")
    clip_files.write_folder(
        folder,
        clip_files.CLIPFiles(
            config=files.config,
            tensors=from_tree(trained),
            preprocessor=files.preprocessor,
            tokenizer=files.tokenizer,
        ),
        storage="float16",
    )
    scorer = PickScore.load(folder, framing="pad")
    accuracy = {}
    for i, kind in enumerate(KINDS):
        random = np.random.default_rng((experiment.seed, i))
        rows, better, worse = zip(*(held_out.pair(kind, random) for _ in range(_HELD_OUT)), strict=True)
        prompts = [held_out.prompts[row] for row in rows]
        right = scorer.score(np.stack(better), prompts, 50) > scorer.score(np.stack(worse), prompts, 50)
        accuracy[kind] = round(float(right.mean()), 4)
    write_json(folder / "accuracy.json", accuracy)


def _weaker_files(experiment: Experiment) -> list[epath.Path]:
    folder = expanded(experiment.weights.base).parent
    return [folder / f"unet-{step}.safetensors" for step in _options(experiment).weaker_steps]


def _earlier(base: Model, path) -> Model:
    """The base with the U-Net of an earlier step of its training."""
    shapes = base.parameters["denoiser"]
    unet = to_tree(folders.load_tensors(path)[0], shapes, where=str(path))
    return base.with_denoiser(unet)


def _options(experiment: Experiment) -> ScorerTraining:
    return section(experiment.extra, "scorer_training")
