"""Checkpoints of a training run, to go on from."""

import contextlib
import errno
import gc
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import LatestN

from hgdpo_jax import hosts
from hgdpo_jax.errors import warn
from hgdpo_jax.files import names_in

State = TypeVar("State")

# The last one may be damaged when it is needed.
_KEPT = 2
# Bytes that a checkpoint takes beside its arrays, generously.
_OVERHEAD = 1 << 20
_LONGEST_REASON = 100
_LATE_SECONDS = 0.5
# On CPUs XLA blocks a thread of its pool while a device has 32 programs in flight. The pool may have no more threads
# than there are devices: a collective that waits for a device whose program waits for that thread then never ends.
_PROGRAMS_IN_FLIGHT = 8
# What tensorstore says where not the files are at fault, but memory, rights or the network.
_PASSING = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


def saved_steps(folder: epath.Path) -> list[int]:
    """The steps whose checkpoints a folder holds, by their names alone: orbax renames a complete one to its step."""
    return sorted(int(name) for name in names_in(folder) if name.isdigit())


class Checkpoints:
    """Keeps a state (any tree of arrays) of the last two steps saved.

    Saving goes on in the background. A checkpoint is there whole or not at all: one that a kill cut short is not seen
    by the next run. It holds a checksum of its arrays, since orbax finds other damage but not bytes altered in them.
    """

    def __init__(self, folder: epath.PathLike):
        # Orbax takes no relative paths, and resolving would break those of an object store.
        self._folder = epath.Path(folder) if "://" in str(folder) else epath.Path(folder).resolve()
        self._open: ocp.CheckpointManager | None = None

    def save(self, step: int, state: Any) -> None:
        """Saves the state after `step`, which is later than all steps saved; returns before it is written.

        Raises OSError (ENOSPC) where the disk has no room for it.
        """
        self._require_room(state)
        content = {"state": state, "checksum": _checksum(state)}
        self._manager().save(step, args=ocp.args.StandardSave(content), force=True)

    def steps(self) -> list[int]:
        """The steps saved, in their order."""
        return hosts.from_first(sorted(self._manager().all_steps()) if self._folder.is_dir() else [])

    def restore(self, template: State) -> tuple[int, State]:
        """The last step whose checkpoint is whole, and the state after it, in types and shardings of `template`.

        A damaged one is named in a warning and removed, and the one before it taken. Without any it is step 0 and
        `template` itself.
        """
        steps = self.steps()
        while steps:
            step = steps.pop()
            try:
                with _quiet_threads():
                    return step, self._read(step, template)
            except Exception as error:
                if _is_passing(error):
                    raise
                reason = " ".join(str(error).split())[:_LONGEST_REASON]
            # Nobody reads it any more.
            hosts.wait()
            self._manager().delete(step)
            if hosts.is_first():
                instead = f"training goes on from step {steps[-1]}" if steps else "training starts anew"
                path = self._folder / str(step)
                warn(f"checkpoint {path} is damaged and was removed ({reason}); {instead}")
        return 0, template

    def remove(self, first: int) -> None:
        """Removes the checkpoints of step `first` and later ones."""
        self.wait_until_finished()
        for step in self.steps():
            if step >= first:
                self._manager().delete(step)

    def wait_until_finished(self) -> None:
        """Waits for the background; raises what went wrong there."""
        if self._open is not None:
            self._open.wait_until_finished()

    def close(self) -> None:
        """Waits for the background and ends it; the next call opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _read(self, step: int, template: State) -> State:
        manager = self._manager()
        manager.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"state": template, "checksum": _checksum(template)})
        content = manager.restore(step, args=ocp.args.StandardRestore(shapes))
        if content["checksum"] != _checksum(content["state"]):
            raise ValueError("it differs from its checksum")
        return content["state"]

    def _require_room(self, state: Any) -> None:
        """On a full disk orbax's threads print a traceback for every array before its error comes."""
        if "://" in str(self._folder):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        needed = _OVERHEAD + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if shutil.disk_usage(self._folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))

    def _manager(self) -> ocp.CheckpointManager:
        if self._open is None:
            self._open = ocp.CheckpointManager(
                self._folder,
                item_handlers=ocp.StandardCheckpointHandler(),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=LatestN(_KEPT),
                    cleanup_tmp_directories=True,
                ),
            )
        return self._open


def _checksum(tree: Any) -> jax.Array:
    """A number that the alteration of any one element changes, and that of several with near certainty."""
    # On the devices: they read gigabytes in no time, and no host need hold the whole of an array.
    total = np.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree), 1):
        total = _add_to_checksum(total, leaf)
        if number % _PROGRAMS_IN_FLIGHT == 0:
            jax.block_until_ready(total)
    return jnp.asarray(total)


@jax.jit
def _add_to_checksum(total: jax.Array, array: jax.Array) -> jax.Array:
    array = jnp.asarray(array)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, length in enumerate(bits.shape):
        position = position * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    # Odd factors lose no bit of an element; mixed, so that no two places are alike.
    factors = (position * jnp.uint32(2_654_435_769)) ^ (position >> 15) | 1
    return total * jnp.uint32(1_000_003) + jnp.sum(bits * factors, dtype=jnp.uint32)


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keeps back the tracebacks of the reads that are under way when another fails, which raises what is to be said."""
    before = sys.excepthook, sys.unraisablehook
    sys.excepthook, sys.unraisablehook = (lambda *_: None), (lambda _: None)
    try:
        yield
    except BaseException:
        # The threads of tensorstore come too late to a loop that has ended.
        gc.collect()
        time.sleep(_LATE_SECONDS)
        raise
    finally:
        sys.excepthook, sys.unraisablehook = before


def _is_passing(error: BaseException | None) -> bool:
    """Whether reading failed for a reason that says nothing about the files."""
    while error is not None:
        if isinstance(error, MemoryError | jax.errors.JaxRuntimeError) or any(word in str(error) for word in _PASSING):
            return True
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
