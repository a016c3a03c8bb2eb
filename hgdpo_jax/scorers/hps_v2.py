"""HPSv2: which image people would choose for a prompt, by a CLIP ViT-H/14 (Wu et al., 2023)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from hgdpo_jax.scorers.clip_scorer import CLIPScorer
from hgdpo_jax.scorers.scorer import Option
from hgdpo_jax.weights import open_clip_file
from hgdpo_jax.weights.clip_tokenizer import require_tokenizer
from hgdpo_jax.weights.sources import resolve_source


class HPSv2(CLIPScorer):
    """The cosine of image and prompt, as `hpsv2.score` gives it, by the weights of v2.0 or v2.1."""

    label = "HPSv2"
    options = {"tokenizer": Option("openai/clip-vit-large-patch14")}

    @classmethod
    def load(
        cls,
        source: str,
        dtype: str = "float32",
        framing: str = "crop",
        tokenizer: str = "openai/clip-vit-large-patch14",
    ) -> "HPSv2":
        """Reads a checkpoint as published: xswu/HPSv2/HPS_v2.1_compressed.pt of the hub, or a file.

        `tokenizer` is a folder or repository with CLIP's. Images are padded whatever `framing` is, as in the reference.
        Raises UserError where a source is missing, damaged, or another architecture.
        """
        files = open_clip_file.read_file(
            resolve_source(source), require_tokenizer(resolve_source(tokenizer, weights=()))
        )
        return cls.from_files(files, source, dtype, framing)

    def preprocess(self, pixels: UInt8[Array, "n height width 3"]) -> Float[Array, "n size size 3"]:
        """The longer side gets the tower's size, black fills up; unlike PIL the reference rounds and clips nothing."""
        size = self.clip.config.vision.image_size
        scale = size / max(pixels.shape[1:3])
        rows, columns = (round(length * scale) for length in pixels.shape[1:3])
        x = pixels.astype(jnp.float32) / 255.0
        if x.shape[1:3] != (rows, columns):
            x = jax.image.resize(x, (x.shape[0], rows, columns, 3), method="cubic", antialias=True)
        top, left = (size - rows) // 2, (size - columns) // 2
        x = jnp.pad(x, ((0, 0), (top, size - rows - top), (left, size - columns - left), (0, 0)))
        return (x - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.deviation, jnp.float32)

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Float[Array, "n p"]
    ) -> Float[Array, "n"]:
        """Scores of images, each against its own prompt."""
        return jnp.sum(self.embed_pixels(parameters, pixels) * prompts, axis=-1)
