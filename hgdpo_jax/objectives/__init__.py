"""What a LoRA learns from: an objective is a module here with a class of its own, and found by the module's name."""

import abc
import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from hgdpo_jax.errors import UserError
from hgdpo_jax.families.model import Model
from hgdpo_jax.settings import setting
from hgdpo_jax.training.pair_errors import PairErrors, pair_errors


@dataclasses.dataclass(frozen=True)
class Chart:
    """A small chart of a training: its title, its series (key of a logged value -> label), and a level to mark."""

    title: str
    note: str
    series: Mapping[str, str]
    level: float | None = None
    percent: bool = False


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """A loss, with its settings as fields: configs have them under the objective's name.

    Fields of type `float` are arguments of the compiled training step: `draw` and `losses` see tracers in their place,
    and neither they nor a `__post_init__` may branch on their values. All others are constants of the program.
    """

    # What a row of a batch contains: "pair" is winner_latents and loser_latents.
    rows: ClassVar[str]
    # How many images of a row the policy denoises, and how many the reference.
    trained_images: ClassVar[int]
    reference_images: ClassVar[int]
    # Incremented when its losses change numerically, so that other code does not continue a training.
    revision: ClassVar[int] = 1
    # Whether a loss depends on means over the rows that the devices take at once: then train.device_batch decides.
    batch_means: ClassVar[bool] = False
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
        """The batch with its random numbers, one `noise` and one of `timesteps` timesteps per row."""
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
        """Losses and what explains them, one float32 value per row; training follows the mean of "loss".

        `batch` is that of `draw`, `conditioning` has one row for each of its rows. With `batch_means` a value may
        depend on means over the rows.
        """


@dataclasses.dataclass(frozen=True)
class PairObjective(Objective):
    """An objective on margins between winner and loser (training/pair_errors.py), beside statistic matching (Eq. 8)."""

    # Scale of the margin, the implicit reward, on errors averaged over the latent (Eq. 3).
    beta: float = 2500.0
    # Weight lambda_stat of statistic matching (Eq. 9); 0: none.
    statistic_weight: float = 10000.0
    # Noise steps that statistic matching goes back: 1 as the paper writes, 20 as one of 50 sampler steps.
    statistic_stride: int = setting(1, least=1)

    rows: ClassVar[str] = "pair"
    trained_images: ClassVar[int] = 2
    reference_images: ClassVar[int] = 2
    charts: ClassVar[Sequence[Chart]] = (
        Chart("Statistic matching loss", "Squared distance of channel means.", {"statistic_loss": "statistic term"}),
        Chart(
            "Implicit accuracy",
            "Share of pairs leaning to the winner.",
            {"implicit_accuracy": "training pairs"},
            0.5,
            percent=True,
        ),
        Chart(
            "Margin",
            "Implicit reward, winner less loser.",
            {"margin": "training pairs"},
            0.0,
        ),
        Chart(
            "Noise prediction error",
            "Dashes: the reference on the same noise.",
            {
                "policy_winner_error": "winner",
                "policy_loser_error": "loser",
                "reference_winner_error": "winner, reference",
                "reference_loser_error": "loser, reference",
            },
        ),
        Chart(
            "Error against the reference",
            "Policy minus reference, by image.",
            {"winner_error_change": "winner", "loser_error_change": "loser"},
            0.0,
        ),
    )

    @abc.abstractmethod
    def pair_loss(self, pairs: PairErrors) -> Float[Array, "n"]:
        """The objective's own term, one float32 value per pair."""

    def losses(
        self, model: Model, lora: dict, base: dict, batch: dict[str, Any], conditioning: Any
    ) -> dict[str, Float[Array, "n"]]:
        """The loss and its terms, and how far policy and reference differ, one value per pair."""
        pairs = pair_errors(model, lora, base, batch, conditioning)
        pair_loss = self.pair_loss(pairs)
        statistic_loss = self.statistic_weight * pairs.statistic_loss(self.statistic_stride)
        margin = self.beta * pairs.margin
        return {
            "loss": pair_loss + statistic_loss,
            f"{self.name()}_loss": pair_loss,
            "statistic_loss": statistic_loss,
            "implicit_accuracy": (margin > 0).astype(jnp.float32),
            "margin": margin,
            **pairs.errors,
        }


def policy_losses(
    objective: Objective, model: Model, lora: dict, base: dict, batch: dict[str, Any], clip_skip: int = 0
) -> dict[str, jax.Array]:
    """An objective's values for a batch with the prompts' `tokens`, one per row, including "loss".

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
        raise UserError(f"config.objective is {name!r}, expected {' or '.join(map(repr, names()))}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Objective))
    return next(value for value in classes if value.__module__ == module.__name__)
