"""Batches of preference pairs for training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.data.batches import ShuffledBatches
from hgdpo_jax.data.pairs import open_pairs
from hgdpo_jax.errors import UserError


class PairLoader:
    """Batches of a folder's pairs, as `ShuffledBatches` makes them."""

    def __init__(self, folder: epath.PathLike, batch_size: int, seed: int):
        if batch_size < 1:
            raise UserError(f"train.batch_size is {batch_size}, expected at least 1")
        pairs = open_pairs(folder)
        self._pairs = len(pairs)
        self._batches = ShuffledBatches(pairs, batch_size, seed, _stack)

    @property
    def pairs(self) -> int:
        """Pairs in an epoch."""
        return self._pairs

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step, counted from 0: lists of `prompts`, and one array `[rows, ...]` for all else.

        Its rows are this process's: all of them where it is alone.
        The names are those of `write_pairs`; latents are float32.
        """
        return self._batches[step]


def _stack(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    arrays = {name: np.stack([pair[name] for pair in pairs]) for name in pairs[0] if name != "prompt"}
    return {"prompts": [pair["prompt"] for pair in pairs], **arrays}
