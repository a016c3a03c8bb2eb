"""Pictures as CLIP's image towers want them."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def preprocess(
    images: Float[Array, "n height width 3"],
    size: int,
    framing: str,
    mean: Sequence[float],
    deviation: Sequence[float],
    half: Callable[[int], int] = lambda margin: margin // 2,
) -> Float[Array, "n size size 3"]:
    """Pixels in [0, 255] to CLIP's input: bicubic with antialiasing, then cropped or padded to a square.

    "crop" gives the shorter side `size` pixels and keeps the centre (PickScore's own processor; 31 % of a 704x1024
    portrait is lost); "pad" gives the longer side `size` pixels and fills up with the mean colour.
    `half` says how much of what is cropped off lies before the centre: references differ in how they round it.
    """
    height, width = images.shape[1:3]
    edge = min(height, width) if framing == "crop" else max(height, width)
    # The reference truncates the longer side to whole pixels.
    rows, columns = int(height * size / edge), int(width * size / edge)
    x = images.astype(jnp.float32)
    # PIL, which the reference resizes with, goes along the rows first and keeps whole numbers in between.
    for shape in ((height, columns), (rows, columns)):
        if x.shape[1:3] != shape:
            x = jax.image.resize(x, (x.shape[0], *shape, 3), method="cubic", antialias=True)
            x = jnp.round(jnp.clip(x, 0.0, 255.0))
    x = (x / 255.0 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(deviation, jnp.float32)
    if framing == "crop":
        top, left = half(rows - size), half(columns - size)
        return x[:, top : top + size, left : left + size]
    top, left = (size - rows) // 2, (size - columns) // 2
    return jnp.pad(x, ((0, 0), (top, size - rows - top), (left, size - columns - left), (0, 0)))
