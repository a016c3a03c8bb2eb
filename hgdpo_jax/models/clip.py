"""CLIP: the text tower that conditions Stable Diffusion, and both towers as PickScore uses them (transformers)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hgdpo_jax.errors import UserError
from hgdpo_jax.models.attention import attention
from hgdpo_jax.models.precision import precise


def _quick_gelu(x):
    return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": lambda x: nn.gelu(x, approximate=False)}


# transformers' defaults, ViT-B/32's, where they are not those below.
_TEXT_DEFAULTS = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "eos_token_id": 49407}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 32,
}


def _known(cls, values: Mapping[str, Any]):
    names = {field.name for field in dataclasses.fields(cls)}
    config = cls(**{k: v for k, v in values.items() if k in names})
    if config.hidden_act not in _ACTIVATIONS:
        raise UserError(f"CLIP activation {config.hidden_act!r} is unknown, expected one of {sorted(_ACTIVATIONS)}")
    return config


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Shape of a text tower, under the names of transformers' config.json; defaults are ViT-L/14's."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    # Early configs say 2, which is no end token: there transformers takes the largest id for it.
    eos_token_id: int = 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CLIPTextConfig":
        """Reads a transformers config.json; raises UserError for an unknown activation."""
        return _known(cls, values)


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Shape of an image tower, under the names of transformers' config.json; defaults are ViT-L/14's."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CLIPVisionConfig":
        """Reads a transformers config.json; raises UserError for an unknown activation."""
        return _known(cls, values)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the width of their common space."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CLIPConfig":
        """Reads a transformers CLIPModel config.json; raises UserError for another model's, or an unknown activation.

        Many versions of transformers leave out of the towers' configs what equals its own defaults.
        """
        if missing := [name for name in ("text_config", "vision_config", "projection_dim") if name not in values]:
            raise UserError(
                f"a config without {missing[0]} is not of a CLIP of two towers: give a folder of a CLIPModel"
            )
        return cls(
            text=CLIPTextConfig.from_dict(_TEXT_DEFAULTS | dict(values["text_config"])),
            vision=CLIPVisionConfig.from_dict(_VISION_DEFAULTS | dict(values["vision_config"])),
            projection_dim=values["projection_dim"],
        )


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer."""

    config: CLIPTextConfig | CLIPVisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, mask):
        config, dtype = self.config, self.dtype
        h = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, name="layer_norm1")(x)
        query, key, value = (
            nn.Dense(config.hidden_size, dtype=dtype, name=f"self_attn.{name}_proj")(h) for name in "qkv"
        )
        attended = attention(query, key, value, config.num_attention_heads, mask)
        x = x + nn.Dense(config.hidden_size, dtype=dtype, name="self_attn.out_proj")(attended)
        h = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, name="layer_norm2")(x)
        h = _ACTIVATIONS[config.hidden_act](nn.Dense(config.intermediate_size, dtype=dtype, name="mlp.fc1")(h))
        return x + nn.Dense(config.hidden_size, dtype=dtype, name="mlp.fc2")(h)


class CLIPTextTransformer(nn.Module):
    """Token ids to the states after the final layer norm, in float32; attention is causal, padding is not masked.

    Being causal, it gives the first k states of a prompt from its first k tokens alone. `skipped_layers` leaves out the
    last layers, but not the norm.
    """

    config: CLIPTextConfig
    dtype: jnp.dtype = jnp.float32

    @precise
    @nn.compact
    def __call__(self, token_ids: Int[Array, "n k"], skipped_layers: int = 0) -> Float[Array, "n k d"]:
        config, dtype, length = self.config, self.dtype, token_ids.shape[1]
        tokens = nn.Embed(config.vocab_size, config.hidden_size, dtype=dtype, name="embeddings.token_embedding")
        positions = nn.Embed(
            config.max_position_embeddings, config.hidden_size, dtype=dtype, name="embeddings.position_embedding"
        )
        x = tokens(token_ids) + positions(jnp.arange(length))
        mask = jnp.triu(jnp.full((length, length), -jnp.inf, jnp.float32), k=1)
        for i in range(config.num_hidden_layers - skipped_layers):
            x = EncoderLayer(config, dtype, name=f"encoder.layers.{i}")(x, mask)
        x = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, name="final_layer_norm")(x)
        return x.astype(jnp.float32)


class CLIPVisionTransformer(nn.Module):
    """Normalised pixels to the class token's state after the last layer norm, in float32."""

    config: CLIPVisionConfig
    dtype: jnp.dtype = jnp.float32

    @precise
    @nn.compact
    def __call__(self, pixels: Float[Array, "n height width 3"]) -> Float[Array, "n d"]:
        config, dtype, size = self.config, self.dtype, self.config.patch_size
        patches = nn.Conv(
            config.hidden_size,
            (size, size),
            strides=(size, size),
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            name="embeddings.patch_embedding",
        )(pixels.astype(dtype)).reshape(pixels.shape[0], -1, config.hidden_size)
        # One name with a dot: the key of the PyTorch parameter.
        class_token = self.param("embeddings.class_embedding", nn.initializers.normal(0.02), (config.hidden_size,))
        class_tokens = jnp.broadcast_to(class_token.astype(dtype), (patches.shape[0], 1, config.hidden_size))
        x = jnp.concatenate([class_tokens, patches], axis=1)
        count = (config.image_size // size) ** 2 + 1
        x = x + nn.Embed(count, config.hidden_size, dtype=dtype, name="embeddings.position_embedding")(
            jnp.arange(count)
        )
        # The reference's own spelling.
        x = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, name="pre_layrnorm")(x)
        for i in range(config.num_hidden_layers):
            x = EncoderLayer(config, dtype, name=f"encoder.layers.{i}")(x, None)
        x = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, name="post_layernorm")(x[:, 0])
        return x.astype(jnp.float32)


def _normalize(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class CLIP(nn.Module):
    """Text and images in one space; embeddings are of unit length, in float32."""

    config: CLIPConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        config = self.config
        self.text_model = CLIPTextTransformer(config.text, self.dtype)
        self.vision_model = CLIPVisionTransformer(config.vision, self.dtype)
        self.text_projection = nn.Dense(config.projection_dim, use_bias=False, dtype=self.dtype)
        self.visual_projection = nn.Dense(config.projection_dim, use_bias=False, dtype=self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    @precise
    def embed_text(self, token_ids: Int[Array, "n k"]) -> Float[Array, "n p"]:
        """Embedding of each prompt, taken at its first end token."""
        states = self.text_model(token_ids)
        end = self.config.text.eos_token_id
        # Words that were added to the vocabulary have larger ids than the end token.
        places = jnp.argmax(token_ids if end == 2 else token_ids == end, axis=-1)
        pooled = jnp.take_along_axis(states, places[:, None, None], axis=1)[:, 0]
        return _normalize(self.text_projection(pooled).astype(jnp.float32))

    @precise
    def embed_images(self, pixels: Float[Array, "n height width 3"]) -> Float[Array, "n p"]:
        """Embedding of each image; pixels are normalised as the checkpoint's preprocessor says."""
        return _normalize(self.visual_projection(self.vision_model(pixels)).astype(jnp.float32))

    def __call__(self, token_ids, pixels):
        """Both embeddings and the logarithm of the temperature's inverse: what training needs."""
        return self.embed_text(token_ids), self.embed_images(pixels), self.logit_scale
