"""Running one compiled program over any number of rows."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from hgdpo_jax.errors import UserError
from hgdpo_jax.sharding import data_mesh, shard_batch


def on_devices(rows: Any) -> Any:
    """The arrays of a tree, their first axes divided over the local devices."""
    return shard_batch(rows, data_mesh())


def rows_of(tree: Any, rows: Any) -> Any:
    """Some rows of every array."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def repeated(tree: Any, count: int) -> Any:
    """Arrays of one row as if they had so many, in the memory of one."""
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape[1:])), tree)


def chosen(first: Bool[np.ndarray, " n"], tree: Any, other: Any) -> Any:
    """Rows of every array of `tree` where `first` is true, of `other` else."""

    def choose(leaf, other):
        return np.where(first.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, other)

    return jax.tree.map(choose, tree, other)


def finite_rows(tree: Any) -> Bool[np.ndarray, " n"]:
    """Of each row whether its values in all arrays are finite."""
    leaves = [np.isfinite(leaf).all(axis=tuple(range(1, np.ndim(leaf)))) for leaf in jax.tree.leaves(tree)]
    return np.all(leaves, axis=0)


def map_batches(
    function: Callable[[np.ndarray], Any],
    count: int,
    device_batch: int,
    report: Callable[[int], object] | None = None,
) -> Any:
    """Calls `function` with the indices of one slice of `count` rows after another; joins its results on the host.

    A result is an array, or a tree of arrays, with a row for each index.

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
