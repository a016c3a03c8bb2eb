"""The base class of scorers."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from hgdpo_jax.arguments import images_and_prompts_of
from hgdpo_jax.batching import map_batches, map_distinct


@dataclasses.dataclass(frozen=True)
class Option:
    """A further source that a kind of scorer reads: its default, and whether its weights are read."""

    default: str
    weights: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer(abc.ABC):
    """A model that scores images for their prompts; higher is better."""

    # The name that people know.
    label: ClassVar[str]
    # Incremented when the same weights give other scores.
    revision: ClassVar[int] = 1
    # Further sources, by the names of the parameters of `load`.
    options: ClassVar[Mapping[str, Option]] = {}

    parameters: dict

    @abc.abstractmethod
    def encode_prompts(self, prompts: str | Sequence[str], device_batch: int = 16) -> Shaped[np.ndarray, "n ..."]:
        """The input of `score_pixels` for each prompt."""

    @abc.abstractmethod
    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Shaped[Array, "n ..."]
    ) -> Float[Array, "n"]:
        """Scores of images, each for its own encoded prompt: a pure function."""

    def score(
        self, images: UInt8[np.ndarray, "n height width 3"], prompts: str | Sequence[str], device_batch: int = 16
    ) -> Float[np.ndarray, "n"]:
        """Score of each image for its prompt, or for one prompt; scores are comparable only within one prompt.

        Raises UserError where the numbers of images and prompts do not match.
        """
        images, prompts = images_and_prompts_of(images, prompts)
        encoded = map_distinct(functools.partial(self.encode_prompts, device_batch=device_batch), prompts)
        return self._map_batches("score_pixels", (images, encoded), device_batch)

    def _map_batches(self, method: str, rows: tuple, device_batch: int) -> np.ndarray:
        """Calls a pure function of the scorer, compiled, with its parameters and batches of rows."""
        program = self._program(method)
        return map_batches(lambda batch: program(self.parameters, *batch), rows, device_batch)

    @functools.cached_property
    def _program(self) -> Callable[[str], Callable]:
        # Programs of the scorer's own methods would be a cycle, and keep the weights on the devices until a garbage
        # collection.
        pure = dataclasses.replace(self, parameters={})
        return functools.cache(lambda method: jax.jit(getattr(pure, method)))
