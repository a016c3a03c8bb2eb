"""The attribute oracle: how many of its prompt's attributes a portrait shows, independent of every scorer."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from hgdpo_jax.arguments import images_and_prompts_of
from hgdpo_jax.batching import map_batches, replicated
from hgdpo_jax.errors import UserError
from hgdpo_jax.models.parameters import apply, shapes_of
from hgdpo_jax.texts import shortened
from hgdpo_jax.toon.attribute_classifier import AttributeClassifier, likeliest, to_float
from hgdpo_jax.toon.captions import caption
from hgdpo_jax.toon.portraits import HEIGHT, SPLITS, WIDTH, labels, portrait
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.conversion import to_tree
from hgdpo_jax.weights.sources import resolve_source

# Prompts are looked up among so many portraits of each split, more than any toon experiment draws.
_PORTRAITS_PER_SPLIT = 5000


@dataclasses.dataclass(frozen=True)
class AttributeOracle:
    """The classifier in a folder that `train_oracle` wrote, or "toon-oracle", loaded at first use."""

    source: str = "toon-oracle"

    @functools.cached_property
    def parameters(self) -> dict:
        """The classifier's weights."""
        folder = resolve_source(self.source)
        shapes = shapes_of(AttributeClassifier(), np.zeros((1, HEIGHT, WIDTH, 3)))
        return to_tree(folders.read_weights(folder, "model"), shapes, where=str(folder), place=replicated)

    @property
    def accuracy(self) -> dict[str, float]:
        """Shares of held-out portraits on which it is right, by attribute, and of "all" attributes."""
        return folders.read_json(resolve_source(self.source) / "accuracy.json")

    @property
    def description(self) -> str:
        """What its scores are, and how far they can be trusted."""
        right = 100 * self.accuracy["all"]
        return f"per cent of the prompt's attributes that the image shows; {right:.1f} % right on real portraits"

    @property
    def fingerprint(self) -> str:
        """Identifies its weights."""
        return folders.content_fingerprint(resolve_source(self.source))

    def __call__(self, images: UInt8[np.ndarray, "n 64 48 3"], prompts: str | Sequence[str]) -> Float[np.ndarray, "n"]:
        """Per cent of the prompt's attributes that each image shows."""
        images, prompts = images_and_prompts_of(images, prompts)
        expected = np.stack([prompt_labels(prompt) for prompt in prompts])
        return 100.0 * (read_attributes(self.parameters, images) == expected).mean(axis=1).astype(np.float32)


attributes_shown = AttributeOracle()


def read_attributes(parameters: dict, images: UInt8[np.ndarray, "n 64 48 3"]) -> Int[np.ndarray, "n attributes"]:
    """Class indices of the attributes that a classifier with these weights reads off each image."""
    if images.shape[1:] != (HEIGHT, WIDTH, 3):
        raise UserError(
            f"the oracle reads portraits of {WIDTH}x{HEIGHT} pixels, not "
            f"{images.shape[2]}x{images.shape[1]}: set config.pool.width and config.pool.height"
        )
    return map_batches(functools.partial(_read, parameters), images, device_batch=64)


@jax.jit
def _read(parameters, pixels):
    return likeliest(apply(AttributeClassifier(), parameters, to_float(pixels)))


def prompt_labels(prompt: str) -> Int[np.ndarray, "attributes"]:
    """Class indices of the attributes that a toon prompt names; raises UserError for any other prompt."""
    for split in SPLITS:
        if prompt in (known := _labels_of_split(split)):
            return known[prompt]
    raise UserError(
        f"the oracle reads only toon prompts, not {shortened(prompt)!r}: leave it out of config.evaluate.scorers"
    )


@functools.cache
def _labels_of_split(split: str) -> dict[str, np.ndarray]:
    people = [portrait(index, split) for index in range(_PORTRAITS_PER_SPLIT)]
    return dict(zip(map(caption, people), labels(people), strict=True))
