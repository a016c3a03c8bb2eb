"""BLIP's towers, as ImageReward uses them: a vision transformer, and a BERT that reads a prompt beside an image."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hgdpo_jax.models.attention import attention
from hgdpo_jax.models.precision import precise


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Shape of the vision transformer; the defaults are those of ViT-L/16 at 224 pixels."""

    width: int = 1024
    intermediate: int = 4096
    layers: int = 24
    heads: int = 16
    patch_size: int = 16
    image_size: int = 224


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Shape of the text encoder; the defaults are those of BERT base, with BLIP's two additional words."""

    vocabulary: int = 30524
    width: int = 768
    intermediate: int = 3072
    layers: int = 12
    heads: int = 12
    positions: int = 512


class VisionTransformer(nn.Module):
    """Normalised pixels to the states of the class token and all patches after the last norm."""

    config: VisionConfig
    dtype: jnp.dtype = jnp.float32

    @precise
    @nn.compact
    def __call__(self, pixels: Float[Array, "n size size 3"]) -> Float[Array, "n t d"]:
        config, dtype, size = self.config, self.dtype, self.config.patch_size
        patches = nn.Conv(
            config.width, (size, size), strides=(size, size), padding="VALID", dtype=dtype, name="patch_embed.proj"
        )(pixels.astype(dtype)).reshape(pixels.shape[0], -1, config.width)
        normal, count = nn.initializers.normal(0.02), (config.image_size // size) ** 2 + 1
        class_token = self.param("cls_token", normal, (1, 1, config.width)).astype(dtype)
        x = jnp.concatenate([jnp.broadcast_to(class_token, (len(patches), 1, config.width)), patches], axis=1)
        x = x + self.param("pos_embed", normal, (1, count, config.width)).astype(dtype)

        def norm(name):
            return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)

        def dense(width, name):
            return nn.Dense(width, dtype=dtype, name=name)

        for block in (f"blocks.{i}" for i in range(config.layers)):
            h = dense(3 * config.width, f"{block}.attn.qkv")(norm(f"{block}.norm1")(x))
            query, key, value = jnp.split(h, 3, axis=-1)
            attended = attention(query, key, value, config.heads)
            x = x + dense(config.width, f"{block}.attn.proj")(attended)
            h = dense(config.intermediate, f"{block}.mlp.fc1")(norm(f"{block}.norm2")(x))
            x = x + dense(config.width, f"{block}.mlp.fc2")(nn.gelu(h, approximate=False))
        return norm("norm")(x)


class TextEncoder(nn.Module):
    """Token ids, which attend to each other and to an image's states, to their states in float32; 0 is padding."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32

    @precise
    @nn.compact
    def __call__(self, token_ids: Int[Array, "n k"], image_states: Float[Array, "n t v"]) -> Float[Array, "n k d"]:
        config, dtype = self.config, self.dtype
        padding = jnp.where(token_ids == 0, -jnp.inf, 0.0)[:, None, None, :]

        def norm(name):
            return nn.LayerNorm(epsilon=1e-12, dtype=dtype, name=name)

        def dense(name, width=config.width):
            return nn.Dense(width, dtype=dtype, name=name)

        def attend(name, x, states, mask=None):
            query, key, value = (
                dense(f"{name}.self.{part}")(of) for part, of in (("query", x), ("key", states), ("value", states))
            )
            attended = dense(f"{name}.output.dense")(attention(query, key, value, config.heads, mask))
            return norm(f"{name}.output.LayerNorm")(attended + x)

        words = nn.Embed(config.vocabulary, config.width, dtype=dtype, name="embeddings.word_embeddings")
        positions = nn.Embed(config.positions, config.width, dtype=dtype, name="embeddings.position_embeddings")
        x = norm("embeddings.LayerNorm")(words(token_ids) + positions(jnp.arange(token_ids.shape[1])))
        for layer in (f"encoder.layer.{i}" for i in range(config.layers)):
            x = attend(f"{layer}.attention", x, x, padding)
            x = attend(f"{layer}.crossattention", x, image_states)
            h = nn.gelu(dense(f"{layer}.intermediate.dense", config.intermediate)(x), approximate=False)
            x = norm(f"{layer}.output.LayerNorm")(dense(f"{layer}.output.dense")(h) + x)
        return x.astype(jnp.float32)
