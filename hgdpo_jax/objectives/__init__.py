"""What a LoRA learns from: an objective is a module here with a class of its own, and found by the module's name."""

import abc
import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from hgdpo_jax.errors import UserError
from hgdpo_jax.families.model import Model


@dataclasses.dataclass(frozen=True)
class Chart:
    """What one small chart of a training shows: a title, the series (key -> label), and a level to mark."""

    title: str
    note: str
    series: Mapping[str, str]
    level: float | None = None
    percent: bool = False


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """A loss, with its settings as fields: configs have them under the objective's name."""

    # What a row of a batch holds: "pair" (winner_latents and loser_latents).
    rows: ClassVar[str]
    # Images of a row that the policy learns from, and those that the reference looks at.
    trained_images: ClassVar[int]
    reference_images: ClassVar[int]
    # Of what `losses` returns.
    charts: ClassVar[Sequence[Chart]] = ()

    @classmethod
    def name(cls) -> str:
        """That of the module, by which configs choose it."""
        return cls.__module__.rpartition(".")[2]

    def section(self) -> dict[str, dict[str, Any]]:
        """Its settings under its name, where it has some."""
        options = dataclasses.asdict(self)
        return {self.name(): options} if options else {}

    def draw(self, batch: dict[str, Any], key: PRNGKeyArray, timesteps: int) -> dict[str, Any]:
        """The batch with what is random in it, one `noise` and one of so many `timesteps` a row."""
        noise_key, time_key = jax.random.split(key)
        shape = jax.tree.leaves({name: rows for name, rows in batch.items() if name.endswith("latents")})[0].shape
        return batch | {
            "noise": jax.random.normal(noise_key, shape),
            "timesteps": jax.random.randint(time_key, shape[:1], 0, timesteps),
        }

    @abc.abstractmethod
    def losses(
        self, model: Model, lora: dict, base: dict, batch: dict[str, Any], conditioning: Any
    ) -> dict[str, Float[Array, "n"]]:
        """Losses and what explains them, one float32 value a row; training follows the mean of "loss".

        `batch` is that of `draw`, `conditioning` has a row for each of its rows. A value may depend on means over the
        rows: these are all rows that the devices take at once.
        """


def policy_losses(
    objective: Objective, model: Model, lora: dict, base: dict, batch: dict[str, Any], clip_skip: int = 0
) -> dict[str, jax.Array]:
    """What an objective makes of a batch, which holds the prompts' `tokens`, one value a row with "loss" among them.

    `clip_skip` layers of the text encoder are skipped.
    """
    conditioning = model.condition(base, batch["tokens"], clip_skip)
    return objective.losses(model, lora, base, batch, conditioning)


def names() -> list[str]:
    """The objectives that configs may name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@functools.cache
def find(name: str) -> type[Objective]:
    """The class of an objective; raises UserError where there is none of this name."""
    if name not in names():
        raise UserError(f"objective is {name!r}, expected {' or '.join(map(repr, names()))}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Objective))
    return next(value for value in classes if value.__module__ == module.__name__)
