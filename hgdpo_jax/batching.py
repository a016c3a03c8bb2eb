"""Running one compiled program over any number of rows."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Shaped

from hgdpo_jax.errors import UserError
from hgdpo_jax.sharding import data_mesh, shard_batch


def on_devices(array: np.ndarray) -> jax.Array:
    """The array, its first axis divided over the local devices."""
    return shard_batch(array, data_mesh())


def finite_rows(rows: Shaped[np.ndarray, "n ..."]) -> Bool[np.ndarray, " n"]:
    """Of each row whether all of its values are finite."""
    return np.isfinite(rows).all(axis=tuple(range(1, np.ndim(rows))))


def map_batches(
    function: Callable[[np.ndarray], Any],
    count: int,
    device_batch: int,
    report: Callable[[int], object] | None = None,
) -> Any:
    """Calls `function` with the indices of one slice of `count` rows after another; joins its results on the host.

    A result is an array, or a tuple of arrays, with a row for each index.

    Every slice has `device_batch` rows a device: the last one is filled with row 0, so that nothing is compiled
    twice. One slice runs while the one before it is fetched. `report` receives the number of rows done.
    """
    if device_batch < 1:
        raise UserError(f"device_batch is {device_batch}, expected at least 1")
    batch = device_batch * data_mesh().size
    results: list[Any] = []

    def fetch(output: Any, rows: int) -> None:
        results.append(jax.tree.map(lambda array: np.asarray(array)[:rows], output))
        if report:
            report(rows)

    pending: tuple[Any, int] | None = None
    for start in range(0, count, batch):
        rows = min(batch, count - start)
        output = function(np.concatenate([np.arange(start, start + rows), np.zeros(batch - rows, np.int64)]))
        if pending:
            fetch(*pending)
        pending = (output, rows)
    if pending:
        fetch(*pending)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *results)
