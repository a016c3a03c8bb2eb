"""Batches of a data set for training."""

from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from hgdpo_jax import hosts


class ShuffledBatches:
    """This process's rows of a source's batches, by step, counted from 0, without end; `stack` makes one of rows.

    Every epoch holds each row once, in an order of its own; a batch may reach into the next epoch. A batch is a pure
    function of seed and step, however many processes share it: there is no state to save. `batch_size` is a multiple
    of their number.
    """

    def __init__(self, source: Any, batch_size: int, seed: int, stack: Callable[[Sequence[Any]], Any] | None = None):
        self._rows = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
        self._batch_size = batch_size
        self._stack = stack or (lambda rows: jax.tree.map(lambda *leaves: np.stack(leaves), *rows))

    def __getitem__(self, step: int) -> Any:
        return self._stack([self._rows[self._batch_size * step + row] for row in hosts.own_rows(self._batch_size)])
