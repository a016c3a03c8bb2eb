"""The best LoRA of a training, in a file of its own."""

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
    """The LoRA of the evaluated step with the highest validation win rate, the later of two equal ones, in a file."""

    def __init__(self, folder: epath.Path, family: type[Family]):
        self.path, self._save = folder / BEST_FILE, family.save_adapter
        self.win_rate = -math.inf

    def is_there(self) -> bool:
        """Whether an earlier run left one, and its file is whole; the first process's answer on all."""
        with contextlib.suppress(UserError):
            self.win_rate = float(load_tensors(self.path)[1]["validation_win_rate"])
        # What follows from it all do together.
        return hosts.from_first(self.win_rate > -math.inf)

    def offer(self, parameters, step: int, win_rate: float) -> None:
        """Keeps the LoRA of a step if it is as good as the one kept."""
        if win_rate >= self.win_rate and hosts.is_first():
            self.win_rate = win_rate
            metadata = {"step": str(step), "validation_win_rate": repr(win_rate)}
            self._save(jax.device_get(parameters), self.path, metadata=metadata)


def best_adapter(folder: epath.Path, family: type[Family]) -> tuple[dict, int]:
    """The LoRA of the step with the highest validation win rate, and that step."""
    return family.load_adapter(folder / BEST_FILE), int(load_tensors(folder / BEST_FILE)[1]["step"])


def was_evaluated(checkpoints: Checkpoints, log: RunLog, first: int) -> bool:
    """Whether `first`, the first step that is evaluated, has its evaluation: its checkpoint is saved before that."""
    return any(step > first or (step == first and log.count(step) > 1) for step in checkpoints.steps())
