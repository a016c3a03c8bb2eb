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


def has_best(folder: epath.Path) -> bool:
    """Whether the first process finds the best LoRA of an earlier run, undamaged."""
    # All processes must agree, because what follows is collective.
    return hosts.from_first(_best_win_rate(folder) > -math.inf)


def keep_best(folder: epath.Path, family: type[Family], parameters, step: int, win_rate: float) -> None:
    """Saves the LoRA of a step if its validation win rate is at least that of the saved one."""
    if hosts.is_first() and win_rate >= _best_win_rate(folder):
        metadata = {"step": str(step), "validation_win_rate": repr(win_rate)}
        family.lora_names.save_adapter(jax.device_get(parameters), folder / BEST_FILE, metadata=metadata)


def _best_win_rate(folder: epath.Path) -> float:
    with contextlib.suppress(UserError):
        return float(load_tensors(folder / BEST_FILE)[1]["validation_win_rate"])
    return -math.inf


def best_adapter(folder: epath.Path, family: type[Family]) -> tuple[dict, int]:
    """The LoRA of the step with the highest validation win rate, and that step."""
    return family.lora_names.load_adapter(folder / BEST_FILE), int(load_tensors(folder / BEST_FILE)[1]["step"])


def was_evaluated(checkpoints: Checkpoints, log: RunLog, first: int) -> bool:
    """Whether step `first`, the first one to evaluate, was evaluated: its checkpoint alone does not show that."""
    return any(step > first or (step == first and log.count(step) > 1) for step in checkpoints.steps())
