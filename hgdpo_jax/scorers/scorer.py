"""What all kinds of scorers have in common."""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from hgdpo_jax.arguments import images_of, of_one_length, texts_of
from hgdpo_jax.batching import map_batches, on_devices


@dataclasses.dataclass(frozen=True)
class Option:
    """A further source that a kind reads: the one it takes where none is given, and whether weights of it are read."""

    default: str
    weights: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer(abc.ABC):
    """A model that scores images for their prompts; higher is better."""

    # How people call it.
    label: ClassVar[str]
    # Raised where the same weights come to give other scores.
    revision: ClassVar[int] = 1
    # Further sources, which `load` takes by these names.
    options: ClassVar[Mapping[str, Option]] = {}

    parameters: dict

    @abc.abstractmethod
    def encode_prompts(self, prompts: str | Sequence[str], device_batch: int = 16) -> Shaped[np.ndarray, "n ..."]:
        """What `score_pixels` wants to know of each prompt."""

    @abc.abstractmethod
    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Shaped[Array, "n ..."]
    ) -> Float[Array, "n"]:
        """Scores of images, each for its own encoded prompt: a pure function."""

    def score(
        self, images: UInt8[np.ndarray, "n height width 3"], prompts: str | Sequence[str], device_batch: int = 16
    ) -> Float[np.ndarray, "n"]:
        """Score of each image for the prompt in the same place, or for one prompt; scores compare only within one.

        Raises UserError where the numbers of images and prompts do not go together.
        """
        images, prompts = of_one_length(images=images_of(images), prompts=texts_of(prompts))
        texts = list(dict.fromkeys(prompts))
        place = {text: i for i, text in enumerate(texts)}
        encoded = self.encode_prompts(texts, device_batch)[np.array([place[prompt] for prompt in prompts])]

        def run(rows):
            return self._score_pixels(self.parameters, on_devices(images[rows]), on_devices(encoded[rows]))

        return map_batches(run, len(images), device_batch)

    def without_parameters(self) -> Self:
        """The same scorer without its weights, for programs that are kept.

        A method of the scorer itself, kept in the scorer, would be a cycle that keeps the weights on the devices until
        a garbage collection.
        """
        return dataclasses.replace(self, parameters={})

    @functools.cached_property
    def _score_pixels(self):
        return jax.jit(self.without_parameters().score_pixels)
