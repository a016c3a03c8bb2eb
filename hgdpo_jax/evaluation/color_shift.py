"""Colour shift of tuned images against base images in hue, saturation and value (HG-DPO, Sec. 4 and Table 2)."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

CHANNELS = ("hue", "saturation", "value")
# About 50 MB of float32 at the widest point, whatever the number of images.
PIXELS_PER_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class HSVMeans:
    """Means over all pixels of a set of images: arithmetic ones within 0 to 1, and the circular mean hue in degrees.

    A pixel without saturation has no hue: in the arithmetic mean it counts as hue 0, as conversions return it;
    the circular mean leaves it out, and is 0 where no pixel has a hue.
    """

    hue: float
    saturation: float
    value: float
    hue_degrees: float


@dataclasses.dataclass(frozen=True)
class ColorShift:
    """Signed changes of the tuned images' HSV means: by channel in per cent of the base's mean, and in degrees of hue.

    A change from a mean of zero is infinite, unless the tuned mean is zero too. Table 2 has the absolute values.
    """

    percent: Mapping[str, float]
    hue_degrees: float
    base: HSVMeans
    tuned: HSVMeans


def rgb_to_hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue, saturation and value, float32 within 0 to 1, of uint8 RGB pixels [..., 3]; hue is 0 where saturation is."""
    # Contiguous channels make the maximum and minimum fast.
    red, green, blue = channels = np.moveaxis(pixels, -1, 0).astype(np.float32, order="C")
    highest = channels.max(axis=0)
    chroma = highest - channels.min(axis=0)
    divisor = np.where(chroma > 0, chroma, 1)
    # Later lines win where two channels are both the highest, so red comes last, as in the usual definition.
    sixths = 4 + (red - green) / divisor
    sixths = np.where(highest == green, 2 + (blue - red) / divisor, sixths)
    sixths = np.where(highest == red, ((green - blue) / divisor) % 6, sixths)
    hue = np.where(chroma > 0, sixths / 6, 0)
    saturation = chroma / np.where(highest > 0, highest, 1)
    return hue, saturation, highest / 255


def hsv_of_images(images: UInt8[np.ndarray, "n height width 3"]) -> Float[np.ndarray, "n 5"]:
    """Of each image the means over its pixels of hue, saturation, value, and of the hue's cosine and sine."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(f"expected uint8 images [n, height, width, 3], got {images.dtype} {images.shape}")
    rows = []
    step = max(1, PIXELS_PER_CHUNK // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), step):
        hue, saturation, value = rgb_to_hsv(images[start : start + step])
        has_hue, angles = saturation > 0, 2 * np.pi * hue
        channels = (hue, saturation, value, np.where(has_hue, np.cos(angles), 0), np.where(has_hue, np.sin(angles), 0))
        rows.append(np.stack([channel.mean(axis=(1, 2), dtype=np.float64) for channel in channels], axis=1))
    return np.concatenate(rows)


def means_of(rows: Float[np.ndarray, "n 5"]) -> HSVMeans:
    """Means over images of equal size, from the rows of `hsv_of_images`."""
    hue, saturation, value, cosine, sine = rows.mean(axis=0, dtype=np.float64).tolist()
    return HSVMeans(hue, saturation, value, math.degrees(math.atan2(sine, cosine)) % 360)


def hsv_means(images: UInt8[np.ndarray, "n height width 3"]) -> HSVMeans:
    """HSV means of uint8 images [n, height, width, 3]."""
    return means_of(hsv_of_images(images))


def shift_between(base: HSVMeans, tuned: HSVMeans) -> ColorShift:
    """Colour shift from the base's means to the tuned ones; hue in degrees takes the shorter way round, -180 to 180."""
    percent = {channel: _percent_change(getattr(base, channel), getattr(tuned, channel)) for channel in CHANNELS}
    return ColorShift(percent, (tuned.hue_degrees - base.hue_degrees + 180) % 360 - 180, base, tuned)


def _percent_change(base: float, tuned: float) -> float:
    if base == 0:
        return 0.0 if tuned == 0 else math.inf
    return 100 * (tuned - base) / base
