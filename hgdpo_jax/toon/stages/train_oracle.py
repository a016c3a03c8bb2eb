"""Trains the attribute oracle: a classifier that reads a toon portrait's attributes off its pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.experiment.models import base_fingerprints, load_base
from hgdpo_jax.files import write_json
from hgdpo_jax.settings import decisive
from hgdpo_jax.toon.attributes import ATTRIBUTES
from hgdpo_jax.toon.fit import fit
from hgdpo_jax.toon.oracle import AttributeOracle, make_classifier, to_float
from hgdpo_jax.toon.portraits import labels, portrait, render_many
from hgdpo_jax.toon.settings import OracleTraining, section
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.conversion import from_tree

INPUTS = ()
_HELD_OUT = 1000


def settings(experiment: Experiment) -> dict:
    return {"seed": experiment.seed, **base_fingerprints(experiment), **decisive(_options(experiment))}


def plan(experiment: Experiment, run: StageRun) -> str:
    options = _options(experiment)
    return f"{options.steps} steps of {options.batch_size} portraits"


def run(experiment: Experiment, run: StageRun) -> None:
    options = _options(experiment)
    base = load_base(experiment, "float32")

    def corpus(split: str, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures as drawn, the same through the autoencoder, and their classes `[n, attributes]`."""
        people = [portrait(first + index, split) for index in range(count)]
        pictures = render_many(people)
        decoded = base.decode_latents(base.encode_images(pictures, 64), 64)
        return pictures, decoded, np.array([[labels(person)[name] for name in ATTRIBUTES] for person in people])

    drawn, decoded, classes = corpus("train", options.first_portrait, options.portraits)

    def loss_function(parameters, _, batch):
        pixels, expected = batch
        logits = make_classifier().apply({"params": parameters}, to_float(pixels))
        each = [
            optax.softmax_cross_entropy_with_integer_labels(logits[name], expected[:, i])
            for i, name in enumerate(ATTRIBUTES)
        ]
        right = jnp.stack([jnp.argmax(logits[name], axis=-1) == expected[:, i] for i, name in enumerate(ATTRIBUTES)])
        return jnp.stack(each).mean(), {"accuracy": right.mean()}

    def batch_at(step):
        random = np.random.default_rng((experiment.seed, step))
        rows = random.integers(len(classes), size=options.batch_size)
        through = random.random((len(rows), 1, 1, 1)) < 0.75
        return np.where(through, decoded[rows], drawn[rows]), classes[rows]

    parameters = jax.jit(make_classifier().init)(jax.random.key(experiment.seed), to_float(drawn[:1]))["params"]
    trained = fit(
        loss_function,
        parameters,
        batch_at,
        run,
        options,
        warmup_steps=options.steps // 20,
    )
    _, held_out, expected = corpus("test", 0, _HELD_OUT)
    read = AttributeOracle(trained, {}).attributes(held_out)
    accuracy = dict(zip(ATTRIBUTES, (read == expected).mean(axis=0).round(4).tolist(), strict=True))
    write_json(run.folder / "oracle" / "accuracy.json", accuracy | {"all": round(float((read == expected).mean()), 4)})
    folders.write_weights(run.folder / "oracle" / "model.safetensors", from_tree(trained), "float16")


def _options(experiment: Experiment) -> OracleTraining:
    return section(experiment.extra, "oracle")
