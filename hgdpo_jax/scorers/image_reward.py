"""ImageReward: how well people would like an image for a prompt, by a BLIP (Xu et al., 2023)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from hgdpo_jax.arguments import texts_of
from hgdpo_jax.compute_types import require_compute_type
from hgdpo_jax.errors import UserError, as_user_error
from hgdpo_jax.files import cached_folder
from hgdpo_jax.models.blip import TextConfig, TextEncoder, VisionConfig, VisionTransformer
from hgdpo_jax.models.parameters import apply, shapes_of
from hgdpo_jax.models.score_head import ScoreHead
from hgdpo_jax.scorers.preprocess import preprocess
from hgdpo_jax.scorers.scorer import Option, Scorer
from hgdpo_jax.sharding import data_mesh, replicate
from hgdpo_jax.weights import image_reward_file
from hgdpo_jax.weights.conversion import to_tree
from hgdpo_jax.weights.sources import resolve_source

_TOKENS = 35
# CLIP's, which BLIP keeps.
_MEAN, _SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Mean and standard deviation of rewards, by which the reference divides.
_REWARD_MEAN, _REWARD_SPREAD = 0.16717362830052426, 1.0333394966054072


@dataclasses.dataclass(frozen=True, eq=False)
class ImageReward(Scorer):
    """A head on the first state of a prompt that was read beside the image, in standard deviations of rewards."""

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
        """Reads the file ImageReward.pt, of the hub THUDM/ImageReward/ImageReward.pt.

        `framing` is "crop" or "pad"; `tokenizer` is a folder or repository with BERT's vocab.txt. The head stays in
        float32. Raises UserError where a source is missing, damaged, or another model.
        """
        if framing not in ("crop", "pad"):
            raise UserError(f"scoring.framing is {framing!r}, expected 'crop' or 'pad'")
        require_compute_type(dtype)
        vision_config, text_config, tensors = image_reward_file.read_file(resolve_source(source))
        vision = VisionTransformer(VisionConfig(**vision_config), jnp.dtype(dtype))
        text = TextEncoder(TextConfig(**text_config), jnp.dtype(dtype))
        place = functools.partial(replicate, mesh=data_mesh())
        head = {name: array for name, array in tensors.items() if name.startswith("mlp.")}
        towers = {name: array for name, array in tensors.items() if name not in head}
        shapes = _shapes(vision, text)
        # Names that find no place are those of a tower, so that they are told with them.
        parameters = to_tree(towers, {"blip": shapes["blip"]}, source, dtype, place)
        parameters |= to_tree(head, {"mlp": shapes["mlp"]}, source, "float32", place)
        return cls(parameters, vision, text, _load_tokenizer(tokenizer), framing)

    def encode_prompts(self, prompts: str | Sequence[str], device_batch: int = 16) -> Int[np.ndarray, "n 35"]:
        """Token ids, cut and padded."""
        encoded = self.tokenizer(texts_of(prompts), padding="max_length", truncation=True, max_length=_TOKENS)
        return np.asarray(encoded["input_ids"], np.int32)

    def score_pixels(
        self, parameters, pixels: UInt8[Array, "n height width 3"], prompts: Int[Array, "n 35"]
    ) -> Float[Array, "n"]:
        """Rewards of images, each for its own prompt."""
        size = self.vision.config.image_size
        # torchvision, which the reference crops with, rounds half a pixel to an even number.
        inputs = preprocess(pixels, size, self.framing, _MEAN, _SPREAD, half=lambda margin: round(margin / 2))
        states = apply(self.vision, parameters["blip"]["visual_encoder"], inputs)
        read = apply(self.text, parameters["blip"]["text_encoder"], prompts, states)
        rewards = apply(ScoreHead(), parameters["mlp"], read[:, 0])
        return (rewards - _REWARD_MEAN) / _REWARD_SPREAD


def _shapes(vision: VisionTransformer, text: TextEncoder) -> dict:
    """Shapes of all parameters, without making any."""
    size = vision.config.image_size
    states = jnp.zeros((1, 2, vision.config.width))
    return {
        "blip": {
            "visual_encoder": shapes_of(vision, jnp.zeros((1, size, size, 3))),
            "text_encoder": shapes_of(text, jnp.zeros((1, 2), jnp.int32), states),
        },
        "mlp": shapes_of(ScoreHead(), jnp.zeros((1, text.config.width))),
    }


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
    # By which the text encoder knows padding.
    if tokenizer.pad_token_id != 0:
        raise UserError(f"{folder / 'vocab.txt'} begins with another word than [PAD], expected BERT's vocabulary")
    return tokenizer
