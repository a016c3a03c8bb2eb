"""PickScore: how well people would like an image for a prompt, by a CLIP model."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from hgdpo_jax.errors import UserError
from hgdpo_jax.models.clip import CLIP, CLIPConfig
from hgdpo_jax.pipelines.batching import map_batches, on_devices
from hgdpo_jax.pipelines.stable_diffusion import apply, load_tokenizer
from hgdpo_jax.scorers.preprocess import preprocess
from hgdpo_jax.scorers.scorer import Option, Scorer
from hgdpo_jax.sharding import data_mesh, replicate
from hgdpo_jax.weights import clip_files
from hgdpo_jax.weights.conversion import to_tree
from hgdpo_jax.weights.sources import resolve_source


@dataclasses.dataclass(frozen=True, eq=False)
class PickScore(Scorer):
    """A CLIP model used as PickScore uses it: `exp(logit_scale)` times the cosine of image and prompt."""

    label = "PickScore"
    options = {"processor": Option("")}

    clip: CLIP
    tokenizer: Any
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    framing: str

    @classmethod
    def load(cls, source: str, dtype: str = "float32", framing: str = "crop", processor: str = "") -> "PickScore":
        """Reads a transformers CLIPModel folder, a repository of the hub, or the packaged "toon-scorer".

        `framing` is "crop" or "pad"; `processor`, a folder or repository, has preprocessor_config.json and tokenizer
        where the source has not. Raises UserError where a source is missing, damaged, or another architecture.
        """
        folder = resolve_source(source)
        files = clip_files.read_folder(folder, resolve_source(processor, weights=False) if processor else "")
        scorer = cls.without_weights(files.config, files.preprocessor, dtype, framing)
        place = functools.partial(replicate, mesh=data_mesh())
        parameters = to_tree(files.tensors, scorer.parameters, where=str(folder), dtype=dtype, place=place)
        # In bfloat16 exp(logit_scale) is off by a tenth, alike for all images, but scores should compare across runs.
        parameters["logit_scale"] = place(np.array(files.tensors["logit_scale"], np.float32))
        return dataclasses.replace(scorer, parameters=parameters, tokenizer=load_tokenizer(files.tokenizer))

    @classmethod
    def without_weights(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any], dtype: str = "float32", framing: str = "crop"
    ) -> "PickScore":
        """The scorer of such configs with shapes in place of parameters, and no tokenizer."""
        if framing not in ("crop", "pad"):
            raise UserError(f"scoring.framing is {framing!r}, expected 'crop' or 'pad'")
        clip = CLIP(CLIPConfig.from_dict(config), jnp.dtype(dtype))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), parameter_shapes(clip))
        return cls(
            clip=clip,
            parameters=shapes,
            tokenizer=None,
            mean=tuple(preprocessor["image_mean"]),
            spread=tuple(preprocessor["image_std"]),
            framing=framing,
        )

    # Pure functions

    def embed_prompts(self, parameters, token_ids: Int[Array, "n t"]) -> Float[Array, "n p"]:
        """Unit embeddings of the prompts."""
        return apply(self.clip, parameters, token_ids, method="embed_text")

    def embed_pixels(self, parameters, pixels: UInt8[Array, "n height width 3"]) -> Float[Array, "n p"]:
        """Unit embeddings of images."""
        size = self.clip.config.vision.image_size
        inputs = preprocess(pixels, size, self.framing, self.mean, self.spread)
        return apply(self.clip, parameters, inputs, method="embed_images")

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Float[Array, "n p"]
    ) -> Float[Array, "n"]:
        """Scores of images, each against its own prompt."""
        embeddings = self.embed_pixels(parameters, pixels)
        return jnp.exp(parameters["logit_scale"]) * jnp.sum(embeddings * prompts, axis=-1)

    # Public interface

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "n t"]:
        """Token ids, cut and padded to the text tower's length."""
        length = self.clip.config.text.max_position_embeddings
        encoded = self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length)
        return np.asarray(encoded["input_ids"], np.int32)

    def encode_prompts(self, prompts: Sequence[str], device_batch: int = 16) -> Float[np.ndarray, "n p"]:
        """Unit embeddings of the prompts."""
        ids = self.tokenize(prompts)
        return map_batches(
            lambda rows: self._embed_prompts(self.parameters, on_devices(ids[rows])), len(ids), device_batch
        )

    def embed_images(
        self, images: UInt8[np.ndarray, "n height width 3"], device_batch: int = 16
    ) -> Float[np.ndarray, "n p"]:
        """Unit embeddings of images."""
        return map_batches(
            lambda rows: self._embed_pixels(self.parameters, on_devices(images[rows])), len(images), device_batch
        )

    @functools.cached_property
    def _embed_prompts(self):
        return jax.jit(self.embed_prompts)

    @functools.cached_property
    def _embed_pixels(self):
        return jax.jit(self.embed_pixels)


def parameter_shapes(clip: CLIP) -> dict:
    """Shapes of a CLIP model's parameters, without making any."""
    size = clip.config.vision.image_size
    ids, pixels = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, size, size, 3))
    return jax.eval_shape(clip.init, jax.random.key(0), ids, pixels)["params"]
