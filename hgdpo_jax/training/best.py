"""The best LoRA of a training run, in its own file."""

import contextlib
import math

import jax
from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.checkpoints import Checkpoints
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.protocol import Family
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.weights.tensor_files import load_tensors

BEST_FILE = "best.safetensors"


class Best:
    """A file with the LoRA of the highest validation win rate, of the later step if two are equal."""

    def __init__(self, folder: epath.Path, family: type[Family]):
        self.path, self._save = folder / BEST_FILE, family.save_adapter
        self.win_rate = -math.inf

    def is_there(self) -> bool:
        """Whether the first process finds an undamaged file of an earlier run."""
        with contextlib.suppress(UserError):
            self.win_rate = float(load_tensors(self.path)[1]["validation_win_rate"])
        # All processes must agree, because what follows is collective.
        return hosts.from_first(self.win_rate > -math.inf)

    def offer(self, parameters, step: int, win_rate: float) -> None:
        """Saves the LoRA of a step if it is at least as good as the saved one."""
        if win_rate >= self.win_rate and hosts.is_first():
            self.win_rate = win_rate
            metadata = {"step": str(step), "validation_win_rate": repr(win_rate)}
            self._save(jax.device_get(parameters), self.path, metadata=metadata)


def best_adapter(folder: epath.Path, family: type[Family]) -> tuple[dict, int]:
    """The LoRA of the step with the highest validation win rate, and that step."""
    return family.load_adapter(folder / BEST_FILE), int(load_tensors(folder / BEST_FILE)[1]["step"])


def was_evaluated(checkpoints: Checkpoints, log: RunLog, first: int) -> bool:
    """Whether step `first`, the first one to evaluate, was evaluated: its checkpoint alone does not show that."""
    return any(step > first or (step == first and log.count(step) > 1) for step in checkpoints.steps())
