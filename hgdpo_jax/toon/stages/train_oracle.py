"""Trains the attribute oracle: a classifier that reads a toon portrait's attributes off its pixels."""

import jax.numpy as jnp
import numpy as np
import optax

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.experiment.models import base_fingerprints, load_base
from hgdpo_jax.files import write_json
from hgdpo_jax.models.parameters import apply
from hgdpo_jax.toon.attribute_classifier import AttributeClassifier, likeliest, to_float
from hgdpo_jax.toon.attributes import ATTRIBUTES
from hgdpo_jax.toon.fit import fit, initial_parameters
from hgdpo_jax.toon.oracle import read_attributes
from hgdpo_jax.toon.portraits import labels, portrait, render_many
from hgdpo_jax.toon.settings import OracleTraining
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.conversion import from_tree

INPUTS = ()
plan = OracleTraining.plan
_HELD_OUT = 1000


def settings(experiment: Experiment) -> dict:
    return base_fingerprints(experiment) | OracleTraining.decisive(experiment)


def run(experiment: Experiment, run: StageRun) -> None:
    options = OracleTraining.of(experiment)
    base = load_base(experiment, "float32")

    def corpus(split: str, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures as drawn, the same through the autoencoder, and their classes `[n, attributes]`."""
        people = [portrait(first + index, split) for index in range(count)]
        pictures = render_many(people)
        decoded = base.decode_latents(base.encode_images(pictures, 64), 64)
        return pictures, decoded, labels(people)

    drawn, decoded, classes = corpus("train", options.first_portrait, options.portraits)

    def loss_function(parameters, _, batch):
        pixels, expected = batch
        logits = apply(AttributeClassifier(), parameters, to_float(pixels))
        errors = map(optax.softmax_cross_entropy_with_integer_labels, logits, expected.T)
        return jnp.stack(list(errors)).mean(), {"accuracy": (likeliest(logits) == expected).mean()}

    def draw_batch(random, _):
        rows = random.integers(len(classes), size=options.batch_size)
        through = random.random((len(rows), 1, 1, 1)) < 0.75
        return np.where(through, decoded[rows], drawn[rows]), classes[rows]

    parameters = initial_parameters(AttributeClassifier(), experiment.seed, to_float(drawn[:1]))
    trained = fit(loss_function, parameters, draw_batch, run, options, experiment.seed)
    _, held_out, expected = corpus("test", 0, _HELD_OUT)
    right = read_attributes(trained, held_out) == expected
    accuracy = dict(zip(ATTRIBUTES, right.mean(axis=0).round(4).tolist(), strict=True))
    write_json(run.folder / "oracle" / "accuracy.json", accuracy | {"all": round(float(right.mean()), 4)})
    folders.write_weights(run.folder / "oracle" / "model.safetensors", from_tree(trained), "float16")
