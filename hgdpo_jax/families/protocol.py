"""The protocol of a family of text-to-image models: its files, its networks' shapes, its pure functions."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from etils import epath
from jaxtyping import Array, Float, Int

from hgdpo_jax.adapters import lora
from hgdpo_jax.diffusion.schedule import NoiseSchedule
from hgdpo_jax.models.autoencoder import Autoencoder
from hgdpo_jax.weights import lora_files
from hgdpo_jax.weights.clip_tokenizer import LongPrompt

Adapters = Sequence[tuple[dict, Any]]
# The inputs of a family's text encoders, and those of its denoiser besides latents and timesteps: an array, or dicts of
# arrays, with one row per prompt.
Tokens = Any
Conditioning = Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Family(abc.ABC):
    """Parameters, schedule and autoencoder of a checkpoint; a family adds other networks and the abstract methods.

    `parameters` has the roles "denoiser", "text" (one or several encoders) and "autoencoder". The pure functions take
    parameters and run inside jit.
    """

    # Names of the layers in LoRA files.
    lora_names: ClassVar[lora_files.LoraNames]
    # Incremented when the same weights give other numbers.
    revision: ClassVar[int] = 1
    # Parts of a checkpoint that may come from another source, by their settings in `weights`; and "schedule", where
    # `ScheduleSettings` may replace what the checkpoint says.
    replaceable: ClassVar[Sequence[str]] = ()

    parameters: dict[str, dict]
    schedule: NoiseSchedule
    autoencoder: Autoencoder

    # Files

    @classmethod
    @abc.abstractmethod
    def load(cls, source: str, dtype: str = "float32", *, attention: str = "auto", **replacements: Any) -> Self:
        """Reads a checkpoint; weights are in `dtype`, replicated on the devices of this process.

        `attention` is that of the denoiser, as in `models/attention.py`; `replacements` are what replaces
        `replaceable` parts. Raises UserError where something is missing, damaged, or of another architecture.
        """

    @classmethod
    @abc.abstractmethod
    def without_weights(
        cls, source: str = "", dtype: str = "float32", *, attention: str = "auto", **replacements: Any
    ) -> Self:
        """The same model from its configs alone, with shapes for parameters; it cannot tokenize.

        Without a source it has the family's published size. Raises UserError as `load` does.
        """

    @classmethod
    @abc.abstractmethod
    def fingerprints(cls, source: str, **replacements: Any) -> dict[str, str]:
        """What decides weights and schedule, by setting: "base" and the replacements, but for `ScheduleSettings`."""

    @abc.abstractmethod
    def save(self, folder: epath.PathLike, storage: str = "float16") -> None:
        """Writes a folder that `load` reads; `storage` is "float16" or "float32"."""

    # Networks

    @abc.abstractmethod
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape of one image's latents; raises UserError for a size in pixels that the networks do not support."""

    @abc.abstractmethod
    def require_clip_skip(self, clip_skip: int) -> None:
        """Raises UserError where the text encoders cannot skip so many layers."""

    @property
    @abc.abstractmethod
    def lora_targets(self) -> dict[str, tuple[int, int]]:
        """Path of every layer that training adapts (HG-DPO, Sec. 3.2), with its input and output width."""

    @abc.abstractmethod
    def computing_in(self, dtype: str) -> Self:
        """The same model, computing in "float32" or "bfloat16"; the type of its weights does not change."""

    @abc.abstractmethod
    def with_remat(self, remat: str) -> Self:
        """The same model whose denoiser rematerialises in the backward pass, as in `models/remat.py`."""

    @abc.abstractmethod
    def tokenize(self, prompts: str | Sequence[str]) -> Tokens:
        """The tokens of prompts, cut and padded."""

    @abc.abstractmethod
    def token_shapes(self, count: int) -> Tokens:
        """Shapes of the tokens of `count` prompts."""

    @abc.abstractmethod
    def long_prompts(self, prompts: Sequence[str]) -> list[LongPrompt]:
        """The prompts whose tokens are cut."""

    # Pure functions

    @abc.abstractmethod
    def condition(self, parameters, tokens: Tokens, clip_skip: int = 0, adapters: Adapters = ()) -> Conditioning:
        """The conditioning of prompts, float32, without the last `clip_skip` layers of the text encoders.

        `adapters` apply to the text encoders. Raises UserError as `require_clip_skip` does.
        """

    @abc.abstractmethod
    def prediction(
        self,
        parameters,
        latents: Float[Array, "n h w c"],
        timesteps: Int[Array, " n"],
        conditioning: Conditioning,
        adapters: Adapters = (),
    ) -> Float[Array, "n h w c"]:
        """The denoiser's prediction in float32, noise or velocity (the schedule's `prediction_type`), with adapters."""

    # Adapters

    @functools.cached_property
    def lora_layers(self) -> dict[str, tuple[int, int]]:
        """Path of every layer that an adapter may change, with its input and output width."""
        return lora.find_layers(self.parameters["denoiser"]) | lora.find_layers(self.parameters["text"])
