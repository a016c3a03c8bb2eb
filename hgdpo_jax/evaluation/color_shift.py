"""Colour shift of tuned images against base images in hue, saturation and value (HG-DPO, Sec. 4 and Table 2)."""

import dataclasses
import math

import numpy as np

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
    """Signed change of the tuned images' HSV means: per cent of the base's arithmetic mean, and hue in degrees.

    A change from a mean of zero is infinite, unless the tuned mean is zero too.
    """

    signed_hue: float
    signed_saturation: float
    signed_value: float
    hue_degrees: float
    base: HSVMeans
    tuned: HSVMeans

    @property
    def hue(self) -> float:
        """Absolute per cent change of the arithmetic mean hue, as Table 2 prints it."""
        return abs(self.signed_hue)

    @property
    def saturation(self) -> float:
        """Absolute per cent change of the mean saturation."""
        return abs(self.signed_saturation)

    @property
    def value(self) -> float:
        """Absolute per cent change of the mean value."""
        return abs(self.signed_value)


def rgb_to_hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue, saturation and value, float32 within 0 to 1, of uint8 RGB pixels [..., 3]; hue is 0 where saturation is."""
    red, green, blue = (pixels[..., channel].astype(np.float32) for channel in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    spread = highest - np.minimum(np.minimum(red, green), blue)
    divisor = np.where(spread > 0, spread, 1)
    # Later lines win where two channels are both the highest, so red comes last, as in the usual definition.
    sixths = 4 + (red - green) / divisor
    sixths = np.where(highest == green, 2 + (blue - red) / divisor, sixths)
    sixths = np.where(highest == red, ((green - blue) / divisor) % 6, sixths)
    hue = np.where(spread > 0, sixths / 6, 0)
    saturation = spread / np.where(highest > 0, highest, 1)
    return hue, saturation, highest / 255


class HSVSums:
    """Sums over the pixels of images that come a chunk at a time, from which their HSV means follow."""

    def __init__(self) -> None:
        self._pixels = 0
        self._sums = np.zeros(3)
        self._direction = np.zeros(2)

    def add(self, images: np.ndarray) -> None:
        """Counts uint8 images [n, height, width, 3] in."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
            raise ValueError(f"expected uint8 images [n, height, width, 3], got {images.dtype} {images.shape}")
        pixels = images.reshape(-1, 3)
        self._pixels += len(pixels)
        for start in range(0, len(pixels), PIXELS_PER_CHUNK):
            hue, saturation, value = rgb_to_hsv(pixels[start : start + PIXELS_PER_CHUNK])
            self._sums += [channel.sum(dtype=np.float64) for channel in (hue, saturation, value)]
            angles = 2 * np.pi * hue[saturation > 0]
            self._direction += [np.cos(angles).sum(dtype=np.float64), np.sin(angles).sum(dtype=np.float64)]

    def means(self) -> HSVMeans:
        """Means over all pixels counted so far; there must be some."""
        hue, saturation, value = (self._sums / self._pixels).tolist()
        degrees = math.degrees(math.atan2(self._direction[1], self._direction[0])) % 360
        return HSVMeans(hue, saturation, value, degrees)


def hsv_means(images: np.ndarray) -> HSVMeans:
    """HSV means of uint8 images [n, height, width, 3]."""
    sums = HSVSums()
    sums.add(images)
    return sums.means()


def shift_between(base: HSVMeans, tuned: HSVMeans) -> ColorShift:
    """Colour shift from the base's means to the tuned ones; hue in degrees takes the shorter way round, -180 to 180."""
    return ColorShift(
        signed_hue=_percent_change(base.hue, tuned.hue),
        signed_saturation=_percent_change(base.saturation, tuned.saturation),
        signed_value=_percent_change(base.value, tuned.value),
        hue_degrees=(tuned.hue_degrees - base.hue_degrees + 180) % 360 - 180,
        base=base,
        tuned=tuned,
    )


def color_shift(base_images: np.ndarray, tuned_images: np.ndarray) -> ColorShift:
    """Colour shift of tuned images against base images, each uint8 [n, height, width, 3]."""
    return shift_between(hsv_means(base_images), hsv_means(tuned_images))


def _percent_change(base: float, tuned: float) -> float:
    if base == 0:
        return 0.0 if tuned == 0 else math.inf
    return 100 * (tuned - base) / base
