"""Images with values that are not finite are left out and counted; too many of them stop a stage."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from hgdpo_jax.errors import UserError, warn
from hgdpo_jax.texts import shortened

# This many are always allowed: one image may be a quarter of a small pool.
_FEW = 3
# If most of this many first images are unusable, all will be. More than the images of one prompt.
_FIRST = 100
_ADVICE = "check the weights, or give --config.dtype=float32"


def image_of(prompts: Sequence[str], index: int) -> Callable[[int], str]:
    """Names image `index` of the prompt in a row."""
    return lambda row: f"image {index} of prompt {shortened(prompts[row])!r}"


def pair_of(prompts: Sequence[str]) -> Callable[[int], str]:
    """Names the pair of the prompt in a row."""
    return lambda row: f"that of prompt {shortened(prompts[row])!r}"


class Unusable:
    """Counts unusable images or pairs among `total`; a share of `limit` is allowed (pool.unusable_limit)."""

    def __init__(self, limit: float, total: int, unit: str = "images"):
        self.count = 0
        self._limit, self._total, self._unit, self._seen = limit, total, unit, 0
        self._what = self._first = ""

    def add(self, finite: Mapping[str, Bool[np.ndarray, " n"]], name: Callable[[int], str]) -> None:
        """Counts images; one is usable if all kinds of its values are finite.

        `finite` lists the kinds in the order in which they are computed, and `name` returns the name of a row's image.
        Raises UserError where more images are unusable than `limit` allows, or most of the first ones and more than
        that share of them.
        """
        usable = np.all(list(finite.values()), axis=0)
        bad = np.flatnonzero(~usable)
        self._seen += len(usable)
        if not len(bad):
            return
        self.count += len(bad)
        if not self._first:
            self._first = name(int(bad[0]))
            self._what = next(what for what, rows in finite.items() if not rows[bad[0]])
        most = self._seen >= _FIRST and self.count > max(self._limit, 0.5) * self._seen
        if most or self.count > max(self._limit * self._total, _FEW):
            raise UserError(
                f"{self._description()}: {_ADVICE}; --config.pool.unusable_limit, now {self._limit:g}, allows a larger "
                f"share of {self._total:,}"
            )

    def require_rest(self, rest: int) -> None:
        """Raises UserError if `rest`, the number of usable ones, is 0."""
        if not rest:
            raise UserError(f"{self._description()}: {_ADVICE}")

    def warn(self) -> None:
        """Warns of the unusable ones, if there are any."""
        if self.count:
            warn(f"{self._description()}; they are left out")

    def _description(self) -> str:
        counts = f"{self.count:,} of {self._seen:,} {self._unit}"
        return f"{counts} are unusable, first {self._first}: {self._what} are not finite"
