"""Batches of a data set for training."""

from collections.abc import Callable, Sequence
from typing import Any

import grain


def shuffled_batches(
    source: Any, batch_size: int, seed: int, stack: Callable[[Sequence[Any]], Any] | None = None
) -> Sequence[Any]:
    """Batches of a source's rows by step, counted from 0, without end; `stack` makes one of a list of rows.

    Every epoch holds each row once, in an order of its own; a batch may reach into the next epoch. A batch is a pure
    function of seed and step: there is no state to save.
    """
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(batch_size, batch_fn=stack)
