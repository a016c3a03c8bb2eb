"""Where arrays lie: batches divided over the devices, parameters on every one."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis "data" over `devices`, by default those of this process."""
    devices = jax.local_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """The arrays of `tree`, the leading axis of each divided evenly over the mesh; scalars lie on every device.

    The leading axes are multiples of the number of devices.
    """

    def place(leaf):
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("data") if np.ndim(leaf) else PartitionSpec()))

    return jax.tree.map(place, tree)


def batch_shapes(tree: Any, mesh: Mesh) -> Any:
    """What `shard_batch` would make, as shapes: for the devices of a mesh that are not there."""
    return _shapes(tree, NamedSharding(mesh, PartitionSpec("data")))


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """What `replicate` would make, as shapes: for the devices of a mesh that are not there."""
    return _shapes(tree, NamedSharding(mesh, PartitionSpec()))


def _shapes(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays of `tree`, a whole copy of each on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
