"""Images with values that are not finite: they are left out and counted, until there are too many of them."""

import sys
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import shortened

# As many are allowed whatever their share is: one image in a small pool is a quarter of it.
_FEW = 3
# Where most of the first images are unusable, all of them will be. More than the images of one prompt.
_FIRST = 100
_ADVICE = "check the weights, or give --config.dtype=float32"


def image_of(prompts: Sequence[str], index: int) -> Callable[[int], str]:
    """Names one image of each prompt by the prompt's row."""

    return lambda row: f"image {index} of prompt {shortened(prompts[row])!r}"


def pair_of(prompts: Sequence[str]) -> Callable[[int], str]:
    """Names the pair of each prompt by the prompt's row."""
    return lambda row: f"that of prompt {shortened(prompts[row])!r}"


class Unusable:
    """Counts the unusable of `total` images or pairs; the share `limit` is allowed (pool.unusable_limit)."""

    def __init__(self, limit: float, total: int, unit: str = "images"):
        self.count = 0
        self._limit, self._total, self._unit, self._seen = limit, total, unit, 0
        self._what = self._first = ""

    def add(self, usable: Bool[np.ndarray, " n"], what: str, name: Callable[[int], str]) -> None:
        """Counts images; `what` says which of their values are not finite, and `name` gives the name of a row's image.

        Raises UserError where more are unusable than `limit` allows, or, unless it allows that, most of the first ones.
        """
        bad = np.flatnonzero(~usable)
        self._seen += len(usable)
        if not len(bad):
            return
        self.count += len(bad)
        if not self._first:
            self._first, self._what = name(int(bad[0])), what
        most = self._seen >= _FIRST and self.count > max(self._limit, 0.5) * self._seen
        if most or self.count > max(self._limit * self._total, _FEW):
            raise UserError(
                f"{self._told()}: {_ADVICE}; --config.pool.unusable_limit, now {self._limit:g}, allows a larger share "
                f"of {self._total:,}"
            )

    def require_rest(self, rest: int) -> None:
        """Raises UserError where `rest`, the number of those that can be used, is 0."""
        if not rest:
            raise UserError(f"{self._told()}: {_ADVICE}")

    def warn(self) -> None:
        """Warns of what was counted, if there is anything."""
        if self.count:
            print(f"warning: {self._told()}; they are left out", file=sys.stderr, flush=True)

    def _told(self) -> str:
        counts = f"{self.count:,} of {self._seen:,} {self._unit}"
        return f"{counts} are unusable, first {self._first}: {self._what} are not finite"
