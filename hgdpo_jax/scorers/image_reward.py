"""ImageReward: how well people would like an image for a prompt, by a BLIP (Xu et al., 2023)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from hgdpo_jax.arguments import texts_of
from hgdpo_jax.batching import replicated
from hgdpo_jax.compute_types import require_compute_type
from hgdpo_jax.errors import UserError, as_user_error
from hgdpo_jax.files import cached_folder
from hgdpo_jax.models.blip import TextConfig, TextEncoder, VisionConfig, VisionTransformer
from hgdpo_jax.models.parameters import apply, shapes_of
from hgdpo_jax.models.score_head import ScoreHead
from hgdpo_jax.scorers.preprocess import preprocess, require_framing
from hgdpo_jax.scorers.scorer import Option, Scorer
from hgdpo_jax.weights import image_reward_file
from hgdpo_jax.weights.clip_files import OPENAI_COLORS
from hgdpo_jax.weights.clip_tokenizer import token_ids
from hgdpo_jax.weights.conversion import to_tree
from hgdpo_jax.weights.sources import resolve_source

_TOKENS = 35
# Mean and standard deviation of rewards, with which the reference standardises them.
_REWARD_MEAN, _REWARD_DEVIATION = 0.16717362830052426, 1.0333394966054072


@dataclasses.dataclass(frozen=True, eq=False)
class ImageReward(Scorer):
    """A head on the first state of a text encoder that attends to the image, in standard deviations of rewards."""

    label = "ImageReward"
    options = {"tokenizer": Option("google-bert/bert-base-uncased")}

    vision: VisionTransformer
    text: TextEncoder
    tokenizer: Any
    framing: str

    @classmethod
    def load(
        cls,
        source: str,
        dtype: str = "float32",
        framing: str = "crop",
        tokenizer: str = "google-bert/bert-base-uncased",
    ) -> "ImageReward":
        """Reads the file ImageReward.pt, on the hub THUDM/ImageReward/ImageReward.pt.

        `framing` is "crop" or "pad"; `tokenizer` is a folder or repository with BERT's vocab.txt. The head stays in
        float32. Raises UserError where a source is missing, damaged, or another model.
        """
        require_framing(framing)
        require_compute_type(dtype)
        vision_config, text_config, tensors = image_reward_file.read_file(resolve_source(source))
        vision = VisionTransformer(VisionConfig(**vision_config), jnp.dtype(dtype))
        text = TextEncoder(TextConfig(**text_config), jnp.dtype(dtype))
        head = {name: array for name, array in tensors.items() if name.startswith("mlp.")}
        towers = {name: array for name, array in tensors.items() if name not in head}
        size, states = vision.config.image_size, np.zeros((1, 2, vision.config.width))
        shapes = {
            "visual_encoder": shapes_of(vision, np.zeros((1, size, size, 3))),
            "text_encoder": shapes_of(text, np.zeros((1, 2), np.int32), states),
        }
        # Unknown names are among the towers', so that they are reported.
        parameters = to_tree(towers, {"blip": shapes}, source, dtype, replicated)
        mlp = {"mlp": shapes_of(ScoreHead(), np.zeros((1, text.config.width)))}
        parameters |= to_tree(head, mlp, source, "float32", replicated)
        return cls(parameters, vision, text, _load_tokenizer(tokenizer), framing)

    def encode_prompts(self, prompts: str | Sequence[str], device_batch: int = 16) -> Int[np.ndarray, "n 35"]:
        """Token ids, cut and padded."""
        return token_ids(self.tokenizer, texts_of(prompts), _TOKENS)

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Int[Array, "n 35"]
    ) -> Float[Array, "n"]:
        """Rewards of images, each for its own prompt."""
        size = self.vision.config.image_size
        # torchvision, which the reference crops with, rounds half a pixel to an even number.
        mean, deviation = OPENAI_COLORS["image_mean"], OPENAI_COLORS["image_std"]
        inputs = preprocess(pixels, size, self.framing, mean, deviation, half=lambda margin: round(margin / 2))
        states = apply(self.vision, parameters["blip"]["visual_encoder"], inputs)
        read = apply(self.text, parameters["blip"]["text_encoder"], prompts, states)
        rewards = apply(ScoreHead(), parameters["mlp"], read[:, 0])
        return (rewards - _REWARD_MEAN) / _REWARD_DEVIATION


def _load_tokenizer(source: str):
    """BERT's tokenizer of a folder or repository; raises UserError where it has no vocabulary."""
    folder = resolve_source(source, weights=())
    if not (folder / "vocab.txt").is_file():
        raise UserError(f"{folder} holds no vocab.txt, expected BERT's, as google-bert/bert-base-uncased has it")
    # Slow to import.
    from transformers import BertTokenizer

    files = cached_folder(folder, ("vocab.txt", "tokenizer_config.json"))
    with as_user_error(f"the tokenizer of {folder} cannot be read"):
        tokenizer = BertTokenizer.from_pretrained(str(files))
    # The text encoder masks this id.
    if tokenizer.pad_token_id != 0:
        raise UserError(f"{folder / 'vocab.txt'} begins with another word than [PAD], expected BERT's vocabulary")
    return tokenizer
