"""CLIP score: how well an image shows what its prompt says (Hessel et al., 2021)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from hgdpo_jax.scorers.clip_scorer import CLIPScorer
from hgdpo_jax.scorers.scorer import Option
from hgdpo_jax.weights import clip_files


class CLIPScore(CLIPScorer):
    """100 times the cosine of image and prompt, as torchmetrics and papers on text-to-image models give it.

    Negative cosines, which these set to 0, stay: they still order images. The first paper has 2.5 in place of 100.
    """

    label = "CLIP score"
    options = {"processor": Option("")}

    @classmethod
    def load(cls, source: str, dtype: str = "float32", framing: str = "crop", processor: str = "") -> "CLIPScore":
        """Reads a transformers CLIPModel folder or a repository of the hub: most give openai/clip-vit-large-patch14.

        `framing` is "crop" or "pad"; `processor`, a folder or repository, has preprocessor_config.json and tokenizer
        where the source has not. Raises UserError where a source is missing, damaged, or another architecture.
        """
        return cls.from_files(clip_files.read_source(source, processor), source, dtype, framing)

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Float[Array, "n p"]
    ) -> Float[Array, "n"]:
        """Scores of images, each against its own prompt."""
        return 100.0 * jnp.sum(self.embed_pixels(parameters, pixels) * prompts, axis=-1)
