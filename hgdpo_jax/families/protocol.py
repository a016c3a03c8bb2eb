"""What a family of text-to-image models has to say: its files, its networks' sizes, its pure functions."""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int, UInt8

from hgdpo_jax.adapters import lora
from hgdpo_jax.diffusion.schedule import NoiseSchedule
from hgdpo_jax.weights import lora_files

Adapters = Sequence[tuple[dict, Any]]
# What a family makes of prompts for its text encoders, and what these make of it for its denoiser: an array, or dicts
# of arrays, with one row a prompt.
Tokens = Any
Conditioning = Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Family(abc.ABC):
    """Parameters, noise schedule and tokenizer of a checkpoint; a family adds its networks and implements the rest.

    `parameters` are those of the "denoiser", of the "text" encoders, and of the "autoencoder". The pure functions take
    them and run inside jit.
    """

    # How LoRA files call the layers.
    lora_names: ClassVar[lora_files.LoraNames]
    # Raised where the same weights come to give other numbers.
    revision: ClassVar[int] = 1

    parameters: dict[str, dict]
    schedule: NoiseSchedule
    # transformers': says where a prompt is cut.
    tokenizer: Any = None

    # Files

    @classmethod
    @abc.abstractmethod
    def load(
        cls, source: str, dtype: str = "float32", tokenizer: str = "", vae: str = "", attention: str = "auto"
    ) -> Self:
        """Reads what a source names; weights are in `dtype`, on each device of this process.

        `tokenizer` and `vae` replace the checkpoint's own; `attention` is the denoiser's, as in `models/attention.py`.
        Raises UserError where something is missing, damaged, or of another architecture.
        """

    @classmethod
    @abc.abstractmethod
    def without_weights(cls, source: str = "", vae: str = "", dtype: str = "float32", attention: str = "auto") -> Self:
        """The same by its configs alone, with shapes in place of parameters and no tokenizer.

        Without a source it has the family's published size. Raises UserError as `load` does.
        """

    @classmethod
    @abc.abstractmethod
    def fingerprints(cls, source: str, tokenizer: str = "", vae: str = "") -> dict[str, str]:
        """What decides weights and schedule, by the names of the arguments; those left out decide nothing."""

    @abc.abstractmethod
    def save(self, folder: epath.PathLike, storage: str = "float16") -> None:
        """Writes a folder that `load` reads; `storage` is "float16" or "float32"."""

    # Networks

    @property
    @abc.abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @abc.abstractmethod
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape of one image's latents; raises UserError where the pixels do not divide evenly through every level."""

    @property
    @abc.abstractmethod
    def prompt_tokens(self) -> int:
        """The tokens of a prompt that are read, the marks of its two ends included."""

    @abc.abstractmethod
    def require_clip_skip(self, clip_skip: int) -> None:
        """Raises UserError where the text encoders have not that many layers to skip."""

    @property
    @abc.abstractmethod
    def lora_targets(self) -> dict[str, tuple[int, int]]:
        """Path of every layer that is tuned (HG-DPO, Sec. 3.2), with its input and output width."""

    @abc.abstractmethod
    def computing_in(self, dtype: str) -> Self:
        """The same weights, in the type they have, with computations in another one: "float32" or "bfloat16"."""

    @abc.abstractmethod
    def with_remat(self, remat: str) -> Self:
        """The same checkpoint whose denoiser makes things again for its gradient, as in `models/remat.py`."""

    @abc.abstractmethod
    def tokenize(self, prompts: str | Sequence[str]) -> Tokens:
        """What `condition` reads of prompts, cut and padded."""

    @abc.abstractmethod
    def token_shapes(self, count: int) -> Tokens:
        """Shapes of the tokens of so many prompts."""

    # Pure functions

    @abc.abstractmethod
    def condition(self, parameters, tokens: Tokens, clip_skip: int = 0, adapters: Adapters = ()) -> Conditioning:
        """What the denoiser reads of prompts, float32, without the text encoders' last `clip_skip` layers.

        `adapters` add what they have for the text encoders. Raises UserError where no layer is left.
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
        """The denoiser's prediction in float32, with the adapters' low-rank branches added at their scales.

        It is noise or velocity, as the schedule's `prediction_type` says.
        """

    @abc.abstractmethod
    def decode(self, parameters, latents: Float[Array, "n h w c"]) -> Float[Array, "n height width 3"]:
        """Scaled latents to images, float32, black at -1 and white at 1; values may lie beyond."""

    @abc.abstractmethod
    def posterior(
        self, parameters, images: UInt8[Array, "n height width 3"]
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
        """Scaled mean and standard deviation of the images' latents, float32."""

    # Adapters

    @classmethod
    def load_adapter(
        cls, path: epath.PathLike, targets: Mapping[str, tuple[int, int]] | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """A LoRA of this family, as `lora_files.load_adapter` reads it."""
        return lora_files.load_adapter(path, cls.lora_names, targets)

    @classmethod
    def save_adapter(
        cls,
        adapter: lora.Adapter,
        path: epath.PathLike,
        format: str = "diffusers",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Writes a LoRA of this family, as `lora_files.save_adapter` does."""
        lora_files.save_adapter(adapter, path, cls.lora_names, format, metadata)

    @functools.cached_property
    def lora_layers(self) -> dict[str, tuple[int, int]]:
        """Path of every layer that an adapter may change, with its input and output width."""
        return lora.find_layers(self.parameters["denoiser"]) | lora.find_layers(self.parameters["text"])
