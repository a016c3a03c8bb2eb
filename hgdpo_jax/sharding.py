"""Where arrays lie: batches divided over all devices, parameters whole on each or divided over some of them.

A mesh has the axes "data" and "fsdp". A batch is divided over both; parameters, where they are divided, over "fsdp".
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
# Elements from which an array is worth dividing: a LoRA's matrices have fewer, a U-Net's kernels more.
_SMALLEST_DIVIDED = 2**16


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default those of this process, for programs in which each is on its own."""
    return _mesh(jax.local_devices() if devices is None else devices, 1)


def training_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default those of all processes; `fsdp` neighbours share one copy of the parameters.

    `fsdp` divides the devices of a process; 0 stands for all of them.
    """
    devices = jax.devices() if devices is None else devices
    # The rows of a process follow each other, and those who share a copy are neighbours.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return _mesh(ordered, fsdp or len(ordered) // len({device.process_index for device in ordered}))


def _mesh(devices: Sequence[jax.Device], fsdp: int) -> Mesh:
    return Mesh(np.asarray(devices).reshape(-1, fsdp), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def introduce(mesh: Mesh) -> None:
    """Lets the devices of a mesh meet, all of them and those along "data", when their processes are here together.

    On CPUs a group's first meeting fails where one process compiles half a minute longer than another; later ones wait.
    """
    if mesh.is_multi_process:
        divided = NamedSharding(mesh, PartitionSpec(*AXES))
        ones = jax.make_array_from_callback(mesh.devices.shape, divided, lambda _: np.ones((1, 1), np.float32))
        for kept in (PartitionSpec(), PartitionSpec("fsdp")):
            axes = 0 if len(kept) else None
            total = jax.jit(lambda x, axes=axes: x.sum(axes), out_shardings=NamedSharding(mesh, kept))
            jax.block_until_ready(total(ones))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """The arrays of `tree`, the leading axis of each divided evenly over the mesh; scalars lie on every device.

    Each process gives the rows of its own devices, a multiple of their number: together they are the batch.
    """
    rows = NamedSharding(mesh, PartitionSpec(AXES))

    def place(leaf):
        if not np.ndim(leaf):
            return replicate(leaf, mesh)
        if mesh.is_multi_process:
            return jax.make_array_from_process_local_data(rows, np.asarray(leaf))
        return jax.device_put(leaf, rows)

    return jax.tree.map(place, tree)


def batch_shapes(tree: Any, mesh: Mesh) -> Any:
    """What `shard_batch` would make, as shapes: for the devices of a mesh that are not there."""
    return jax.tree.map(lambda leaf: _shape(leaf, NamedSharding(mesh, PartitionSpec(AXES))), tree)


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """What `replicate` would make, as shapes."""
    return jax.tree.map(lambda leaf: _shape(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def parameter_shapes(tree: Any, mesh: Mesh) -> Any:
    """What `shard_parameters` would make, as shapes."""
    return jax.tree.map(lambda leaf: _shape(leaf, parameter_sharding(leaf.shape, mesh)), tree)


def _shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays of `tree`, the same on all processes, a whole copy of each on every device of the mesh."""
    return jax.tree.map(lambda leaf: _place(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def shard_parameters(tree: Any, mesh: Mesh) -> Any:
    """The arrays of `tree`, the same on all processes, each divided over "fsdp" as `parameter_sharding` says."""
    return jax.tree.map(lambda leaf: _place(leaf, parameter_sharding(np.shape(leaf), mesh)), tree)


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if not sharding.mesh.is_multi_process:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if leaf.sharding == sharding:
            return leaf
        # One at a time: on CPUs many collectives in flight can block each other, see checkpoints.py.
        return jax.block_until_ready(jax.jit(lambda leaf: leaf, out_shardings=sharding)(leaf))
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    if not sharding.is_fully_replicated:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
    # Copies that lie on this process's devices already are taken as they are.
    copies = jax.device_put(leaf, NamedSharding(data_mesh(), PartitionSpec()))
    return _from_shards(copies, sharding)


def parameter_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Divides the longest axis that divides evenly over "fsdp"; small arrays, and those without one, stay whole."""
    fsdp = mesh.shape["fsdp"]
    axes = [axis for axis, length in enumerate(shape) if length % fsdp == 0]
    if fsdp == 1 or not axes or int(np.prod(shape)) < _SMALLEST_DIVIDED:
        return NamedSharding(mesh, PartitionSpec())
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))


def on_each_device(tree: Any, mesh: Mesh) -> Any:
    """The arrays of `tree`, which lie on `mesh`, whole on each device of this process, for its own programs."""
    whole, local = NamedSharding(mesh, PartitionSpec()), NamedSharding(data_mesh(), PartitionSpec())
    if not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        tree = jax.jit(lambda tree: tree, out_shardings=whole)(tree)
    return jax.tree.map(lambda leaf: _from_shards(leaf, local), tree)


def _from_shards(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The same copies on this process's devices, as an array of another mesh."""
    shards = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)
