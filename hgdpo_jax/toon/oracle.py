"""The attribute oracle: how many of its prompt's attributes a portrait shows, independent of every scorer."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt8

from hgdpo_jax.arguments import images_and_prompts_of, images_of
from hgdpo_jax.batching import map_batches, replicated
from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import shortened
from hgdpo_jax.toon.attribute_classifier import AttributeClassifier
from hgdpo_jax.toon.attributes import ATTRIBUTES
from hgdpo_jax.toon.captions import caption
from hgdpo_jax.toon.portraits import HEIGHT, SPLITS, WIDTH, labels, portrait
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.conversion import to_tree
from hgdpo_jax.weights.sources import resolve_source

# How far down a split a prompt is looked up: past what any toon experiment draws.
_PORTRAITS_A_SPLIT = 5000


def make_classifier() -> AttributeClassifier:
    """The untrained classifier of all toon attributes."""
    return AttributeClassifier(classes=tuple((name, len(classes)) for name, classes in ATTRIBUTES.items()))


def to_float(pixels: UInt8[ArrayLike, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Pixels to [-1, 1]."""
    return jnp.asarray(pixels, jnp.float32) / 127.5 - 1.0


@functools.cache
def prompt_labels(prompt: str) -> np.ndarray:
    """Class indices of the attributes that a toon prompt names; raises UserError for any other prompt."""
    for split in SPLITS:
        if prompt in (known := _labels_of_split(split)):
            return known[prompt]
    raise UserError(f"the oracle reads only toon prompts, not {shortened(prompt)!r}: leave it out of evaluate.scorers")


@functools.cache
def _labels_of_split(split: str) -> dict[str, np.ndarray]:
    people = (portrait(index, split) for index in range(_PORTRAITS_A_SPLIT))
    return {caption(person): np.array([labels(person)[name] for name in ATTRIBUTES]) for person in people}


@dataclasses.dataclass(frozen=True, eq=False)
class AttributeOracle:
    """The classifier with its weights and its measured accuracy on held-out portraits."""

    parameters: dict
    accuracy: dict[str, float]

    @classmethod
    def load(cls, source: str) -> "AttributeOracle":
        """Reads a folder that `train_oracle` wrote, or "toon-oracle"."""
        folder = resolve_source(source)
        pixels = jnp.zeros((1, HEIGHT, WIDTH, 3))
        shapes = jax.eval_shape(make_classifier().init, jax.random.key(0), pixels)["params"]
        return cls(
            parameters=to_tree(folders.read_weights(folder, "model"), shapes, where=str(folder), place=replicated),
            accuracy=folders.read_json(folder / "accuracy.json"),
        )

    def attributes(self, images: UInt8[np.ndarray, "n 64 48 3"], device_batch: int = 64) -> np.ndarray:
        """Class indices read off each image, `[n, attributes]`."""
        images = images_of(images)
        if images.shape[1:] != (HEIGHT, WIDTH, 3):
            raise UserError(
                f"the oracle reads portraits of {WIDTH}x{HEIGHT} pixels, not {images.shape[2]}x{images.shape[1]}"
            )
        return map_batches(functools.partial(_read, self.parameters), images, device_batch)

    def score(self, images: UInt8[np.ndarray, "n 64 48 3"], prompts: str | Sequence[str]) -> Float[np.ndarray, "n"]:
        """Share of the prompt's attributes, in per cent, that each image shows."""
        images, prompts = images_and_prompts_of(images, prompts)
        expected = np.stack([prompt_labels(prompt) for prompt in prompts])
        return 100.0 * (self.attributes(images) == expected).mean(axis=1).astype(np.float32)


@jax.jit
def _read(parameters, pixels):
    logits = make_classifier().apply({"params": parameters}, to_float(pixels))
    return jnp.stack([jnp.argmax(logits[name], axis=-1) for name in ATTRIBUTES], axis=-1)


class _AttributesShown:
    """The packaged oracle as a scorer that configs can name."""

    def __call__(self, images: UInt8[np.ndarray, "n 64 48 3"], prompts: Sequence[str]) -> Float[np.ndarray, "n"]:
        return self._oracle.score(images, prompts)

    @property
    def description(self) -> str:
        """What its numbers are, and how far they can be trusted."""
        right = 100 * self._oracle.accuracy["all"]
        return f"per cent of the prompt's attributes that the image shows; right on {right:.1f} % of real portraits'"

    @property
    def fingerprint(self) -> str:
        """Names its weights."""
        return folders.content_fingerprint(resolve_source("toon-oracle"))

    @functools.cached_property
    def _oracle(self) -> AttributeOracle:
        return AttributeOracle.load("toon-oracle")


attributes_shown = _AttributesShown()
