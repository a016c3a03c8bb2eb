"""The base class of scorers that embed images, and mostly prompts, by a CLIP."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from hgdpo_jax.arguments import images_of, texts_of
from hgdpo_jax.batching import replicated
from hgdpo_jax.compute_types import require_compute_type
from hgdpo_jax.errors import as_user_error
from hgdpo_jax.models.clip import CLIP, CLIPConfig
from hgdpo_jax.models.parameters import apply, shapes_of
from hgdpo_jax.scorers.preprocess import preprocess, require_framing
from hgdpo_jax.scorers.scorer import Option, Scorer
from hgdpo_jax.weights import clip_files
from hgdpo_jax.weights.clip_tokenizer import load_tokenizer, token_ids
from hgdpo_jax.weights.conversion import to_tree
from hgdpo_jax.weights.sources import resolve_source


@dataclasses.dataclass(frozen=True, eq=False)
class CLIPScorer(Scorer):
    """A CLIP model and how it frames its images; by default scores are the cosine of image and prompt times `scale`."""

    options = {"processor": Option("")}

    clip: CLIP
    tokenizer: Any
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    framing: str

    @classmethod
    def load(cls, source: str, dtype: str = "float32", framing: str = "crop", processor: str = "") -> Self:
        """Reads a transformers CLIPModel folder or a repository of the hub, such as openai/clip-vit-large-patch14.

        `framing` is "crop" or "pad"; `processor`, a folder or repository, has preprocessor_config.json and tokenizer
        where the source has not. Raises UserError where a source is missing, damaged, or another architecture.
        """
        folder = resolve_source(processor, weights=()) if processor else ""
        return cls.from_files(clip_files.read_folder(resolve_source(source), folder), source, dtype, framing)

    @classmethod
    def from_files(cls, files: clip_files.CLIPFiles, where: str, dtype: str, framing: str) -> Self:
        """The scorer of such files, which `where` names in messages; `framing` is "crop" or "pad".

        Raises UserError where the weights are not those that the config describes.
        """
        with as_user_error(f"the configs of {where} describe no model that can be built"):
            scorer = cls.without_weights(files.config, files.preprocessor, dtype, framing)
        parameters = to_tree(files.tensors, scorer.parameters, where, dtype, replicated)
        # In bfloat16 exp(logit_scale) is inaccurate: equally for all images, but scores should compare across runs.
        names = ("logit_scale",)
        scale, shapes = ({name: each[name] for name in names} for each in (files.tensors, scorer.parameters))
        parameters |= to_tree(scale, shapes, where, "float32", replicated)
        return dataclasses.replace(scorer, parameters=parameters, tokenizer=load_tokenizer(files.tokenizer))

    @classmethod
    def without_weights(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any], dtype: str = "float32", framing: str = "crop"
    ) -> Self:
        """The scorer of such configs with shapes in place of parameters, and no tokenizer."""
        require_framing(framing)
        clip = CLIP(CLIPConfig.from_dict(config), jnp.dtype(require_compute_type(dtype)))
        size = clip.config.vision.image_size
        shapes = shapes_of(clip, np.zeros((1, 2), np.int32), np.zeros((1, size, size, 3)))
        return cls(
            clip=clip,
            parameters=jax.tree.map(lambda leaf: leaf.update(dtype=clip.dtype), shapes),
            tokenizer=None,
            mean=tuple(preprocessor["image_mean"]),
            deviation=tuple(preprocessor["image_std"]),
            framing=framing,
        )

    # Pure functions

    def scale(self, parameters) -> float | Float[Array, ""]:
        """The score of a cosine of 1."""
        return 1.0

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Float[Array, "n p"]
    ) -> Float[Array, "n"]:
        """Scores of images, each against its own prompt."""
        return self.scale(parameters) * jnp.sum(self.embed_pixels(parameters, pixels) * prompts, axis=-1)

    def embed_prompts(self, parameters, token_ids: Int[Array, "n t"]) -> Float[Array, "n p"]:
        """Unit embeddings of the prompts."""
        return apply(self.clip, parameters, token_ids, method="embed_text")

    def preprocess(self, pixels: UInt8[Array, "n height width 3"]) -> Float[Array, "n size size 3"]:
        """Input of the image tower."""
        return preprocess(pixels, self.clip.config.vision.image_size, self.framing, self.mean, self.deviation)

    def embed_pixels(self, parameters, pixels: UInt8[Array, "n height width 3"]) -> Float[Array, "n p"]:
        """Unit embeddings of images."""
        return apply(self.clip, parameters, self.preprocess(pixels), method="embed_images")

    # Public interface

    def tokenize(self, prompts: str | Sequence[str]) -> Int[np.ndarray, "n t"]:
        """Token ids, cut and padded to the text tower's length."""
        length = self.clip.config.text.max_position_embeddings
        return token_ids(self.tokenizer, texts_of(prompts), length)

    def encode_prompts(self, prompts: str | Sequence[str], device_batch: int = 16) -> Float[np.ndarray, "n p"]:
        """Unit embeddings of the prompts."""
        return self._map_batches("embed_prompts", (self.tokenize(prompts),), device_batch)

    def embed_images(
        self, images: UInt8[np.ndarray, "n height width 3"], device_batch: int = 16
    ) -> Float[np.ndarray, "n p"]:
        """Unit embeddings of images."""
        return self._map_batches("embed_pixels", (images_of(images),), device_batch)
