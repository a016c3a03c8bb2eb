"""A scorer of the user's own: any function of images and prompts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from hgdpo_jax.arguments import images_of, of_one_length, texts_of
from hgdpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class UserScorer:
    """Calls `function(images, prompts)`, which returns a number for each image; `source` names it in messages."""

    function: Callable[[UInt8[np.ndarray, "n height width 3"], Sequence[str]], Any]
    source: str

    def try_out(self, prompt: str, width: int, height: int) -> None:
        """Asks it about black pictures; raises UserError where it fails, or gives a score that is not finite."""
        scores = self.score(np.zeros((2, height, width, 3), np.uint8), [prompt, prompt])
        if not np.isfinite(scores).all():
            raise UserError(
                f"scorer {self.source} returned {scores.tolist()} for black pictures, expected finite numbers"
            )

    def score(
        self, images: UInt8[np.ndarray, "n height width 3"], prompts: str | Sequence[str], device_batch: int = 16
    ) -> Float[np.ndarray, "n"]:
        """What the function says of each image; raises UserError where that is not a number for each."""
        images, prompts = of_one_length(images=images_of(images), prompts=texts_of(prompts))
        try:
            scores = np.asarray(self.function(images, prompts), np.float32)
        except UserError:
            raise
        # The user's own code may raise anything.
        except Exception as error:
            raise UserError(f"scorer {self.source} failed with {type(error).__name__}: {error}") from error
        if scores.shape != (len(images),):
            raise UserError(
                f"scorer {self.source} returned an array of shape {list(scores.shape)} for {len(images)} images, "
                "expected a number for each"
            )
        return scores
