"""Many pictures on one sheet, for the eye."""

import numpy as np
from einops import rearrange
from PIL import Image


def contact_sheet(images: np.ndarray, columns: int, enlarge: int = 1) -> np.ndarray:
    """Pictures uint8 `[n, h, w, 3]` in rows of `columns`, each enlarged by a whole factor; white where none is left."""
    count = -len(images) % columns
    filled = np.concatenate([images, np.full((count, *images.shape[1:]), 255, np.uint8)])
    sheet = rearrange(filled, "(r c) h w rgb -> (r h) (c w) rgb", c=columns)
    size = (sheet.shape[1] * enlarge, sheet.shape[0] * enlarge)
    return np.asarray(Image.fromarray(sheet).resize(size, Image.Resampling.BICUBIC))
