"""A user's own filter, which decides which images of a pool may become winner or loser."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from hgdpo_jax.errors import UserError
from hgdpo_jax.user_functions import load_function

ImageFilter = Callable[[UInt8[np.ndarray, "n height width 3"], Sequence[str]], Bool[np.ndarray, " n"]]


def load_filter(source: str) -> tuple[ImageFilter, str]:
    """Loads the filter that "module:function" names, and its fingerprint; raises UserError if there is none.

    A filter is called with images and their prompts, and returns whether to keep each image.
    """
    return load_function(source, "config.pairs.filter")


def apply_filter(
    image_filter: ImageFilter, images: UInt8[np.ndarray, "n height width 3"], prompts: Sequence[str]
) -> Bool[np.ndarray, " n"]:
    """Which images the filter keeps; raises UserError if it fails, or does not return one bool per image."""
    try:
        kept = np.asarray(image_filter(images, prompts))
    except Exception as error:
        raise UserError(
            f"config.pairs.filter failed with {type(error).__name__}: {error}; correct the function"
        ) from error
    if kept.shape != (len(images),) or kept.dtype != bool:
        raise UserError(
            f"config.pairs.filter returned {kept.dtype}{list(kept.shape)} for {len(images)} images, "
            f"expected bool[{len(images)}]"
        )
    return kept
