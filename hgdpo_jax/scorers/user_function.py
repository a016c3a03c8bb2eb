"""The user's own functions of images and prompts: scorers and measures."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from hgdpo_jax.arguments import images_and_prompts_of
from hgdpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class UserFunction:
    """Calls `function(images, prompts)`, which returns one number per image; `source` names it in messages."""

    function: Callable[[UInt8[np.ndarray, "n height width 3"], Sequence[str]], Any]
    source: str

    def try_out(self, prompt: str, width: int, height: int) -> Shaped[np.ndarray, "2"]:
        """Its values for two black images; raises UserError where it fails or a value is not finite."""
        values = self._values(np.zeros((2, height, width, 3), np.uint8), [prompt, prompt])
        if not np.isfinite(values).all():
            raise UserError(f"{self.source} returned {values.tolist()} for black pictures, expected finite numbers")
        return values

    def score(
        self, images: UInt8[np.ndarray, "n height width 3"], prompts: str | Sequence[str], device_batch: int = 16
    ) -> Float[np.ndarray, "n"]:
        """Its value for each image; raises UserError where it does not return one number per image."""
        return self._values(images, prompts).astype(np.float32)

    def _values(self, images: np.ndarray, prompts: str | Sequence[str]) -> Shaped[np.ndarray, "n"]:
        images, prompts = images_and_prompts_of(images, prompts)
        try:
            values = np.asarray(self.function(images, prompts))
            values.astype(np.float32)
        except UserError:
            raise
        # The user's own code may raise anything.
        except Exception as error:
            raise UserError(
                f"{self.source} failed with {type(error).__name__}: {error}; correct the function"
            ) from error
        if values.shape != (len(images),):
            raise UserError(
                f"{self.source} returned an array of shape {list(values.shape)} for {len(images)} images, expected a "
                "number for each"
            )
        return values
