"""Running one compiled program over any number of rows."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from hgdpo_jax.errors import UserError
from hgdpo_jax.sharding import data_mesh, replicate, shard_batch


def on_devices(rows: Any) -> Any:
    """The arrays of a tree, sharded along their first axes over the local devices."""
    return shard_batch(rows, data_mesh())


def replicated(tree: Any) -> Any:
    """The arrays of a tree, a copy of each on every local device."""
    return replicate(tree, data_mesh())


def rows_of(tree: Any, rows: Any) -> Any:
    """Some rows of every array."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def repeated(tree: Any, count: int) -> Any:
    """Arrays of one row repeated `count` times, in the memory of one row."""
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape[1:])), tree)


def chosen(first: Bool[np.ndarray, " n"], tree: Any, other: Any) -> Any:
    """Rows of every array of `tree` where `first` is true, of `other` otherwise."""

    def choose(leaf, other):
        return np.where(np.expand_dims(first, tuple(range(1, leaf.ndim))), leaf, other)

    return jax.tree.map(choose, tree, other)


def finite_rows(tree: Any) -> Bool[np.ndarray, " n"]:
    """Whether all values of each row, in all arrays, are finite."""
    leaves = [np.isfinite(leaf).all(axis=tuple(range(1, np.ndim(leaf)))) for leaf in jax.tree.leaves(tree)]
    return np.all(leaves, axis=0)


def map_distinct(function: Callable[[list[str]], Any], texts: Sequence[str]) -> Any:
    """Calls `function` once, with the distinct texts, and returns its row for each of `texts`."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    results = function(list(places))
    if len(places) == len(texts):
        return results
    if len(places) == 1:
        # The empty prompt, for example, which all images share.
        return repeated(results, len(texts))
    return rows_of(results, [places[text] for text in texts])


def map_batches(
    function: Callable[[Any], Any],
    rows: Any,
    device_batch: int,
    report: Callable[[int], object] | None = None,
) -> Any:
    """Calls `function` with batches of `rows` on the local devices; joins its results on the host.

    Rows and results are arrays or trees of arrays with one row per item. Each batch has `device_batch` rows per device;
    the last one is filled with row 0, so that one compiled program serves all. A batch runs while the results of the
    previous one are fetched. `report` receives the number of rows done. Raises UserError if `device_batch` is below 1.
    """
    if device_batch < 1:
        raise UserError(f"device_batch is {device_batch}, expected at least 1")
    batch, count = device_batch * data_mesh().size, len(jax.tree.leaves(rows)[0])
    report = report or (lambda done: None)
    results: list[Any] = []
    for start in range(0, count, batch):
        indices = np.arange(start, start + batch)
        results.append(function(on_devices(rows_of(rows, np.where(indices < count, indices, 0)))))
        if start:
            results[-2] = jax.device_get(results[-2])
            report(batch)
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *jax.device_get(results))
    report(count - start)
    return joined
