"""Images to the inputs of CLIP's image towers."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hgdpo_jax.errors import UserError


def require_framing(framing: str) -> None:
    """Raises UserError unless `framing` is "crop" or "pad"."""
    if framing not in ("crop", "pad"):
        raise UserError(f"config.scoring.framing is {framing!r}, expected 'crop' or 'pad'")


def preprocess(
    images: Float[Array, "n height width 3"],
    size: int,
    framing: str,
    mean: Sequence[float],
    deviation: Sequence[float],
    half: Callable[[int], int] = lambda margin: margin // 2,
) -> Float[Array, "n size size 3"]:
    """Pixels in [0, 255] to CLIP's input: resized by bicubic with antialiasing, then cropped or padded to a square.

    "crop" scales the shorter side to `size` pixels and keeps the centre (PickScore's own processor; 31 % of a 704x1024
    portrait is lost); "pad" scales the longer side to `size` pixels and pads with the mean colour. `half` is the part
    of a cropped margin that lies before the centre: references round it differently.
    """
    height, width = images.shape[1:3]
    edge = min(height, width) if framing == "crop" else max(height, width)
    # The reference truncates the longer side to whole pixels.
    rows, columns = int(height * size / edge), int(width * size / edge)
    x = images.astype(jnp.float32)
    # PIL, which the reference resizes with, resizes along the rows first and rounds in between.
    for shape in ((height, columns), (rows, columns)):
        if x.shape[1:3] != shape:
            x = jax.image.resize(x, (x.shape[0], *shape, 3), method="cubic", antialias=True)
            x = jnp.round(jnp.clip(x, 0.0, 255.0))
    x = standardized(x / 255.0, mean, deviation)
    if framing == "pad":
        return padded(x, size)
    top, left = half(rows - size), half(columns - size)
    return x[:, top : top + size, left : left + size]


def standardized(
    images: Float[Array, "n h w 3"], mean: Sequence[float], deviation: Sequence[float]
) -> Float[Array, "n h w 3"]:
    """Images of mean 0 and standard deviation 1 where those given have `mean` and `deviation`."""
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(deviation, jnp.float32)


def padded(images: Float[Array, "n h w 3"], size: int) -> Float[Array, "n size size 3"]:
    """Images centred in a square of zeros."""
    margins = [(0, 0), *(((size - n) // 2, (size - n + 1) // 2) for n in images.shape[1:3]), (0, 0)]
    return jnp.pad(images, margins)
