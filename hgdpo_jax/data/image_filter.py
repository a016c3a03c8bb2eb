"""A filter of the user's own, which says what images of a pool may become winner or loser."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from hgdpo_jax.data.pool import Block, DamagedPartError, Parts, Pool, write_behind
from hgdpo_jax.errors import UserError
from hgdpo_jax.run_log import progress
from hgdpo_jax.user_functions import load_function

ImageFilter = Callable[[UInt8[np.ndarray, "n height width 3"], Sequence[str]], Bool[np.ndarray, " n"]]


def load_filter(source: str) -> tuple[ImageFilter, str]:
    """The filter that "module:function" names, and its fingerprint; raises UserError where there is none.

    It is called with images and their prompts and returns for each whether it is kept.
    """
    return load_function(source, "pairs.filter")


def apply_filter(
    image_filter: ImageFilter, images: UInt8[np.ndarray, "n height width 3"], prompts: Sequence[str]
) -> Bool[np.ndarray, " n"]:
    """What the filter says of images; raises UserError where that is not one bool for each."""
    try:
        kept = np.asarray(image_filter(images, prompts))
    except Exception as error:
        raise UserError(f"pairs.filter failed with {type(error).__name__}: {error}") from error
    if kept.shape != (len(images),) or kept.dtype != bool:
        raise UserError(
            f"pairs.filter returned {kept.dtype}{list(kept.shape)} for {len(images)} images, "
            f"expected bool[{len(images)}]"
        )
    return kept


def filter_pool(
    image_filter: ImageFilter,
    decode: Callable[[Float[np.ndarray, "n h w c"]], UInt8[np.ndarray, "n height width 3"]],
    pool: Pool,
    kept: Parts,
    parts: Sequence[tuple[Block, int]],
) -> None:
    """Asks the filter about the images of some parts, but for those whose latents are damaged."""
    with (
        progress(total=sum(len(block.prompts) for block, _ in parts), description="filter images", unit="image") as bar,
        write_behind() as write,
    ):
        for block, index in parts:
            try:
                images = decode(pool.latents.read(block, index))
            except DamagedPartError:
                continue
            write(kept.write, block, index, apply_filter(image_filter, images, block.prompts))
            bar.update(len(images))
