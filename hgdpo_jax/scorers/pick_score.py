"""PickScore: how well people would like an image for a prompt, by a CLIP model."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from hgdpo_jax.scorers.clip_scorer import CLIPScorer
from hgdpo_jax.scorers.scorer import Option
from hgdpo_jax.weights import clip_files


class PickScore(CLIPScorer):
    """A CLIP model used as PickScore uses it: `exp(logit_scale)` times the cosine of image and prompt."""

    label = "PickScore"
    options = {"processor": Option("")}

    @classmethod
    def load(cls, source: str, dtype: str = "float32", framing: str = "crop", processor: str = "") -> "PickScore":
        """Reads a transformers CLIPModel folder, a repository of the hub, or the packaged "toon-scorer".

        `framing` is "crop" or "pad"; `processor`, a folder or repository, has preprocessor_config.json and tokenizer
        where the source has not. Raises UserError where a source is missing, damaged, or another architecture.
        """
        return cls.from_files(clip_files.read_source(source, processor), source, dtype, framing)

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Float[Array, "n p"]
    ) -> Float[Array, "n"]:
        """Scores of images, each against its own prompt."""
        embeddings = self.embed_pixels(parameters, pixels)
        return jnp.exp(parameters["logit_scale"]) * jnp.sum(embeddings * prompts, axis=-1)
