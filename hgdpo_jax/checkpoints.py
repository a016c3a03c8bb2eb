"""Checkpoints of a training run: the last one to go on from, and the best one to keep."""

import errno
import math
import os
import shutil
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

State = TypeVar("State")

# Bytes that a checkpoint takes beside its arrays, generously.
_OVERHEAD = 1 << 20


class Checkpoints:
    """Keeps a state (any tree of arrays) of the last step saved, and of the best by the metric named `best`.

    Higher is better; without `best` only the last is kept. Saving goes on in the background. A checkpoint is there
    whole or not at all: one that a kill cut short is not seen by the next run.
    """

    def __init__(self, folder: epath.PathLike, best: str | None = None):
        # Orbax takes no relative paths, and resolving would break those of an object store.
        self._folder = epath.Path(folder) if "://" in str(folder) else epath.Path(folder).resolve()
        self._best = best
        self._open: ocp.CheckpointManager | None = None

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Saves the state after `step`, which is later than all steps saved; returns before it is written.

        Raises OSError (ENOSPC) where the disk has no room for it.
        """
        self._require_room(state)
        manager = self._manager()
        values = {name: float(value) for name, value in (metrics or {}).items()}
        manager.save(step, args=ocp.args.StandardSave(state), metrics=values or None, force=True)

    def latest_step(self) -> int | None:
        """The last step saved; None before the first."""
        return self._manager().latest_step() if self._folder.is_dir() else None

    def best_step(self) -> int | None:
        """The step of the highest metric, the later of two equal ones; None where none was saved with it."""
        if not self._folder.is_dir():
            return None
        manager = self._manager()
        manager.wait_until_finished()
        values = {step: self._value(manager.metrics(step)) for step in sorted(manager.all_steps(), reverse=True)}
        best = max(values, key=lambda step: values[step], default=None)
        return None if best is None or values[best] == -math.inf else best

    def restore(self, step: int, template: State) -> State:
        """The state saved after `step`, in the structure, types and shardings of `template`."""
        manager = self._manager()
        manager.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        return manager.restore(step, args=ocp.args.StandardRestore(shapes))

    def wait_until_finished(self) -> None:
        """Waits for the background; raises what went wrong there."""
        if self._open is not None:
            self._open.wait_until_finished()

    def close(self) -> None:
        """Waits for the background and ends it; the next call opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None

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
            policies: list[Any] = [LatestN(1)]
            if self._best:
                policies.append(BestN(get_metric_fn=self._value, n=1, keep_checkpoints_without_metrics=False))
            self._open = ocp.CheckpointManager(
                self._folder,
                item_handlers=ocp.StandardCheckpointHandler(),
                options=ocp.CheckpointManagerOptions(
                    # Without it the metrics are not written.
                    best_fn=self._value if self._best else None,
                    preservation_policy=AnyPreservationPolicy(policies),
                    cleanup_tmp_directories=True,
                ),
            )
        return self._open

    def _value(self, metrics: Mapping[str, float] | None) -> float:
        value = (metrics or {}).get(self._best or "", math.nan)
        return -math.inf if math.isnan(value) else value
