"""CLIP: the text tower that conditions Stable Diffusion, and both towers as PickScore uses them (transformers)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hgdpo_jax.errors import UserError
from hgdpo_jax.models.layers import attend, embed_patches
from hgdpo_jax.models.parameters import NetworkConfig
from hgdpo_jax.models.precision import precise


def _quick_gelu(x):
    return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": lambda x: nn.gelu(x, approximate=False)}
_PROJECTIONS = tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig(NetworkConfig):
    """What both towers have, under the names of transformers' config.json; an unknown activation is a UserError."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden_act not in _ACTIVATIONS:
            raise UserError(f"CLIP activation {self.hidden_act!r} is unknown, expected one of {sorted(_ACTIVATIONS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(TowerConfig):
    """Shape of a text tower."""

    vocab_size: int
    max_position_embeddings: int
    # Early configs say 2, which is no end token: transformers then takes the largest id.
    eos_token_id: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(TowerConfig):
    """Shape of an image tower."""

    image_size: int
    patch_size: int


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the width of their common space."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads a transformers CLIPModel config.json whose towers leave nothing out."""
        return cls(
            CLIPTextConfig.from_dict(values["text_config"]),
            CLIPVisionConfig.from_dict(values["vision_config"]),
            values["projection_dim"],
        )


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer."""

    config: TowerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, mask=None):
        config, dtype = self.config, self.dtype
        norm = functools.partial(nn.LayerNorm, epsilon=config.layer_norm_eps, dtype=dtype)
        h = norm(name="layer_norm1")(x)
        x = x + attend(h, h, config.num_attention_heads, dtype, _PROJECTIONS, mask)
        h = norm(name="layer_norm2")(x)
        h = _ACTIVATIONS[config.hidden_act](nn.Dense(config.intermediate_size, dtype=dtype, name="mlp.fc1")(h))
        return x + nn.Dense(config.hidden_size, dtype=dtype, name="mlp.fc2")(h)


class CLIPTextTransformer(nn.Module):
    """Token ids to the states after the final layer norm, in float32; attention is causal, padding is not masked.

    Because of this, the first k states of a prompt depend on its first k tokens alone. `skipped_layers` leaves out the
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
        config, dtype = self.config, self.dtype
        norm = functools.partial(nn.LayerNorm, epsilon=config.layer_norm_eps, dtype=dtype)
        # One name with a dot: the key of the PyTorch parameter.
        class_token = self.param("embeddings.class_embedding", nn.initializers.normal(0.02), (config.hidden_size,))
        patches = "embeddings.patch_embedding"
        x = embed_patches(pixels, class_token, config.patch_size, dtype, patches, use_bias=False)
        count = (config.image_size // config.patch_size) ** 2 + 1
        positions = nn.Embed(count, config.hidden_size, dtype=dtype, name="embeddings.position_embedding")
        x = x + positions(jnp.arange(count))
        # The reference's own spelling.
        x = norm(name="pre_layrnorm")(x)
        for i in range(config.num_hidden_layers):
            x = EncoderLayer(config, dtype, name=f"encoder.layers.{i}")(x)
        x = norm(name="post_layernorm")(x[:, 0])
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
