"""LAION's aesthetic predictor: how beautiful people would find an image, whatever its prompt."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, UInt8

from hgdpo_jax.arguments import texts_of
from hgdpo_jax.batching import replicated
from hgdpo_jax.models.parameters import apply, shapes_of
from hgdpo_jax.models.score_head import ScoreHead
from hgdpo_jax.scorers.clip_scorer import CLIPScorer
from hgdpo_jax.scorers.scorer import Option
from hgdpo_jax.weights.conversion import to_tree
from hgdpo_jax.weights.folders import read_tensor_file
from hgdpo_jax.weights.sources import resolve_source


class Aesthetic(CLIPScorer):
    """A head on the unit image embedding of CLIP ViT-L/14; parameters are `clip`, without a text tower, and `head`."""

    label = "Aesthetic"
    options = {"clip": Option("openai/clip-vit-large-patch14", weights=True)}

    @classmethod
    def load(
        cls, source: str, dtype: str = "float32", framing: str = "crop", clip: str = "openai/clip-vit-large-patch14"
    ) -> "Aesthetic":
        """Reads the head, a file such as sac+logos+ava1-l14-linearMSE.pth, and the CLIP it was trained on.

        On the hub the head is trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth. `framing` is "crop" or "pad".
        The head stays in float32. Raises UserError where a source is missing, damaged, or another architecture.
        """
        head = read_tensor_file(resolve_source(source))
        scorer = super().load(clip, dtype, framing)
        shapes = shapes_of(ScoreHead(), np.zeros((1, scorer.clip.config.projection_dim)))
        parameters = {
            "clip": {name: leaf for name, leaf in scorer.parameters.items() if not name.startswith("text_")},
            "head": to_tree(head, shapes, source, place=replicated),
        }
        return dataclasses.replace(scorer, parameters=parameters)

    def embed_pixels(self, parameters, pixels: UInt8[Array, "n height width 3"]) -> Float[Array, "n p"]:
        return super().embed_pixels(parameters["clip"], pixels)

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Float[Array, "n 0"]
    ) -> Float[Array, "n"]:
        """Scores of images."""
        return apply(ScoreHead(), parameters["head"], self.embed_pixels(parameters, pixels))

    def encode_prompts(self, prompts: str | Sequence[str], device_batch: int = 16) -> Float[np.ndarray, "n 0"]:
        """Arrays without values: prompts have no effect."""
        return np.zeros((len(texts_of(prompts)), 0), np.float32)
