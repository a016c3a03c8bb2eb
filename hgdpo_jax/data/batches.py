"""Batches of a data set for training."""

from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from hgdpo_jax import hosts


class ShuffledBatches:
    """This process's rows of each batch, by step, counted from 0: trees of arrays, `transform` of the source's rows.

    Every epoch holds each row once, in an order of its own; a batch may reach into the next epoch. A batch is a pure
    function of seed and step, however many processes share it: there is no state to save. `batch_size` is a multiple
    of the number of processes.
    """

    def __init__(self, source: Any, batch_size: int, seed: int, transform: Callable[[Any], Any] = lambda row: row):
        self._rows = grain.MapDataset.source(source).seed(seed).shuffle().repeat().map(transform)
        self._batch_size = batch_size

    def __getitem__(self, step: int) -> Any:
        rows = [self._rows[self._batch_size * step + row] for row in hosts.own_rows(self._batch_size)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
