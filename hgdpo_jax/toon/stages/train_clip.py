"""Trains a small CLIP on portraits and their captions: a toon checkpoint's text encoder, and the start of a scorer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hgdpo_jax import losses
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.models.parameters import apply
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.toon.attributes import COMBINATION
from hgdpo_jax.toon.captions import wordings
from hgdpo_jax.toon.fit import fit, initial_parameters
from hgdpo_jax.toon.portraits import Portrait, portrait, render_many
from hgdpo_jax.toon.settings import CLIPTraining
from hgdpo_jax.toon.vocabulary import crop_padding, write_tokenizer
from hgdpo_jax.weights import clip_files
from hgdpo_jax.weights.clip_tokenizer import load_tokenizer
from hgdpo_jax.weights.conversion import from_tree

INPUTS = ()
settings, plan = CLIPTraining.decisive, CLIPTraining.plan

# Pixels in [-1, 1]: the statistics of photographs do not apply to toon portraits.
PREPROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

# Portraits of the same colours in a batch: otherwise colours alone identify each text's image, and the towers learn
# nothing else.
_ALIKE = 4


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
    options = CLIPTraining.of(experiment)
    tokenizer_folder = run.folder / "tokenizer"
    config = clip_config(options, write_tokenizer(tokenizer_folder, options.vocabulary_size))
    model = dataclasses.replace(
        PickScore.without_weights(config, PREPROCESSOR, framing="pad"), tokenizer=load_tokenizer(tokenizer_folder)
    )
    people = alike(options.first_portrait, options.portraits // _ALIKE)
    images = render_many(people)
    texts = wordings(people, options.captions_per_portrait)
    token_ids = crop_padding(model.tokenize(texts)).reshape(options.captions_per_portrait, len(people), -1)

    def loss_function(parameters, _, batch):
        ids, pixels = batch
        text, image, logit_scale = apply(model.clip, parameters, ids, model.preprocess(pixels))
        loss = losses.contrastive(text, image, jnp.exp(logit_scale)).mean()
        nearest = jnp.argmax(jnp.matmul(text, image.T, precision=jax.lax.Precision.HIGHEST), axis=-1)
        return loss, {"accuracy": (nearest == jnp.arange(len(ids))).mean(), "logit_scale": logit_scale}

    def draw_batch(random, _):
        groups = random.choice(len(people) // _ALIKE, size=options.batch_size // _ALIKE, replace=False)
        rows = (groups[:, None] * _ALIKE + np.arange(_ALIKE)).ravel()
        return token_ids[random.integers(len(token_ids), size=len(rows)), rows], images[rows]

    inputs = token_ids[0, :1], model.preprocess(jnp.asarray(images[:1]))
    trained = fit(
        loss_function,
        initial_parameters(model.clip, experiment.seed, *inputs),
        draw_batch,
        run,
        options,
        experiment.seed,
        warmup_steps=options.steps // 10,
    )
    size = options.vision["image_size"]
    preprocessor = PREPROCESSOR | {"size": {"shortest_edge": size}, "crop_size": size}
    files = clip_files.CLIPFiles(config, from_tree(trained), preprocessor, tokenizer_folder)
    clip_files.write_folder(run.folder / "clip", files, storage="float32")
