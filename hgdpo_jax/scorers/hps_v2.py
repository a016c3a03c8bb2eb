"""HPSv2: which image people would choose for a prompt, by a CLIP ViT-H/14 (Wu et al., 2023)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from hgdpo_jax.scorers.clip_scorer import CLIPScorer
from hgdpo_jax.scorers.preprocess import padded, standardized
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
        """Reads a checkpoint as published: xswu/HPSv2/HPS_v2.1_compressed.pt on the hub, or a file.

        `tokenizer` is a folder or repository with CLIP's. As in the reference, images are padded for any `framing`.
        Raises UserError where a source is missing, damaged, or another architecture.
        """
        files = open_clip_file.read_file(
            resolve_source(source), require_tokenizer(resolve_source(tokenizer, weights=()))
        )
        return cls.from_files(files, source, dtype, framing)

    def preprocess(self, pixels: UInt8[Array, "n height width 3"]) -> Float[Array, "n size size 3"]:
        """Scales the longer side to the tower's size and pads with black.

        Unlike PIL, the reference neither rounds nor clips.
        """
        size = self.clip.config.vision.image_size
        scale = size / max(pixels.shape[1:3])
        rows, columns = (round(length * scale) for length in pixels.shape[1:3])
        x = pixels.astype(jnp.float32) / 255.0
        if x.shape[1:3] != (rows, columns):
            x = jax.image.resize(x, (x.shape[0], rows, columns, 3), method="cubic", antialias=True)
        return standardized(padded(x, size), self.mean, self.deviation)
