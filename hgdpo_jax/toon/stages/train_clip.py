"""Trains a small CLIP on portraits and their captions: a toon checkpoint's text encoder, and the start of a scorer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hgdpo_jax import losses
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.models.clip import CLIP, CLIPConfig
from hgdpo_jax.scorers.preprocess import preprocess
from hgdpo_jax.settings import decisive
from hgdpo_jax.toon.attributes import COMBINATION
from hgdpo_jax.toon.captions import wordings
from hgdpo_jax.toon.fit import fit
from hgdpo_jax.toon.portraits import Portrait, portrait, render_many
from hgdpo_jax.toon.settings import CLIPTraining, section
from hgdpo_jax.toon.vocabulary import crop_padding, write_tokenizer
from hgdpo_jax.weights import clip_files
from hgdpo_jax.weights.clip_tokenizer import load_tokenizer
from hgdpo_jax.weights.conversion import from_tree

INPUTS = ()

# Centred pixels; the toon models have no reason to share the statistics of photographs.
PREPROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

# Portraits of the same colours in a batch: among strangers colours alone find each text's image, and the towers learn
# nothing else.
_ALIKE = 4


def settings(experiment: Experiment) -> dict:
    return {"seed": experiment.seed, **decisive(_options(experiment))}


def plan(experiment: Experiment, run: StageRun) -> str:
    options = _options(experiment)
    return f"{options.steps} steps of {options.batch_size} portraits"


def clip_config(options: CLIPTraining, vocabulary: int) -> dict:
    """A transformers CLIPModel config.json of the given sizes."""
    text = {"hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": vocabulary}
    # The markers are the last two entries, as in CLIP's own vocabulary.
    text |= {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return {
        "projection_dim": options.projection_dim,
        "text_config": {**text, **options.text, "projection_dim": options.projection_dim},
        "vision_config": {"hidden_act": "quick_gelu", **options.vision, "projection_dim": options.projection_dim},
    }


def alike(first: int, groups: int) -> list[Portrait]:
    """Training portraits from `first` on, in groups that share all colours and little else."""
    people = []
    for index in range(groups * _ALIKE):
        person = portrait(first + index, "train")
        if index % _ALIKE == 0:
            colors: dict[str, Any] = dict(zip(COMBINATION, person.combination, strict=True))
        people.append(dataclasses.replace(person, **colors))
    return people


def run(experiment: Experiment, run: StageRun) -> None:
    options = _options(experiment)
    tokenizer_folder = run.folder / "tokenizer"
    vocabulary = write_tokenizer(tokenizer_folder, options.vocabulary_size)
    tokenizer = load_tokenizer(tokenizer_folder)
    model_config = clip_config(options, vocabulary)
    model = CLIP(CLIPConfig.from_dict(model_config))
    people = alike(options.first_portrait, options.portraits // _ALIKE)
    images = render_many(people)
    texts = wordings(people, options.captions_per_portrait)
    token_ids = np.asarray(tokenizer(texts, padding="max_length", max_length=77)["input_ids"], np.int32)
    token_ids = crop_padding(token_ids).reshape(options.captions_per_portrait, len(people), -1)

    def loss_function(parameters, _, batch):
        ids, pixels = batch
        inputs = preprocess(pixels, options.vision["image_size"], "pad", **_statistics())
        text, image, logit_scale = model.apply({"params": parameters}, ids, inputs)
        loss = losses.contrastive(text, image, jnp.exp(logit_scale)).mean()
        nearest = jnp.argmax(jnp.matmul(text, image.T, precision=jax.lax.Precision.HIGHEST), axis=-1)
        return loss, {"accuracy": (nearest == jnp.arange(len(ids))).mean(), "logit_scale": logit_scale}

    def batch_at(step):
        random = np.random.default_rng((experiment.seed, step))
        groups = random.choice(len(people) // _ALIKE, size=options.batch_size // _ALIKE, replace=False)
        rows = (groups[:, None] * _ALIKE + np.arange(_ALIKE)).ravel()
        return token_ids[random.integers(len(token_ids), size=len(rows)), rows], images[rows]

    ids, pixels = batch_at(0)
    inputs = preprocess(jnp.asarray(pixels[:1]), options.vision["image_size"], "pad", **_statistics())
    parameters = jax.jit(model.init)(jax.random.key(experiment.seed), ids[:1], inputs)["params"]
    trained = fit(
        loss_function,
        parameters,
        batch_at,
        run,
        options,
        warmup_steps=options.steps // 10,
    )
    clip_files.write_folder(
        run.folder / "clip",
        clip_files.CLIPFiles(
            config=model_config,
            tensors=from_tree(trained),
            preprocessor=PREPROCESSOR
            | {"size": {"shortest_edge": options.vision["image_size"]}, "crop_size": options.vision["image_size"]},
            tokenizer=tokenizer_folder,
        ),
        storage="float32",
    )


def _statistics() -> dict:
    return {"mean": PREPROCESSOR["image_mean"], "deviation": PREPROCESSOR["image_std"]}


def _options(experiment: Experiment) -> CLIPTraining:
    return section(experiment.extra, "clip")
