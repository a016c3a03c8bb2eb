"""Running one compiled program over any number of rows."""

from collections.abc import Callable

import jax
import numpy as np

from hgdpo_jax.sharding import data_mesh, shard_batch


def on_devices(array: np.ndarray) -> jax.Array:
    """The array, its first axis divided over the local devices."""
    return shard_batch(array, data_mesh())


def map_batches(
    function: Callable[[np.ndarray], jax.Array],
    count: int,
    device_batch: int,
    report: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Calls `function` with the indices of one slice of `count` rows after another; joins its results on the host.

    Every slice has `device_batch` rows a device: the last one is filled with row 0, so that nothing is compiled
    twice. One slice runs while the one before it is fetched. `report` receives the number of rows done.
    """
    batch = device_batch * data_mesh().size
    results: list[np.ndarray] = []

    def fetch(output: jax.Array, rows: int) -> None:
        results.append(np.asarray(output)[:rows])
        if report:
            report(rows)

    pending: tuple[jax.Array, int] | None = None
    for start in range(0, count, batch):
        rows = min(batch, count - start)
        output = function(np.concatenate([np.arange(start, start + rows), np.zeros(batch - rows, np.int64)]))
        if pending:
            fetch(*pending)
        pending = (output, rows)
    if pending:
        fetch(*pending)
    return np.concatenate(results)
