"""BLIP's towers, as ImageReward uses them: a vision transformer, and a BERT that reads a prompt beside an image."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hgdpo_jax.models.attention import attention
from hgdpo_jax.models.layers import attend, embed_patches
from hgdpo_jax.models.precision import precise


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Shape of the vision transformer."""

    width: int
    intermediate: int
    layers: int
    heads: int
    patch_size: int
    image_size: int


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Shape of the text encoder."""

    vocabulary: int
    width: int
    intermediate: int
    layers: int
    heads: int
    positions: int


class VisionTransformer(nn.Module):
    """Normalised pixels to the states of the class token and all patches after the last norm."""

    config: VisionConfig
    dtype: jnp.dtype = jnp.float32

    @precise
    @nn.compact
    def __call__(self, pixels: Float[Array, "n size size 3"]) -> Float[Array, "n t d"]:
        config, dtype = self.config, self.dtype
        dense = functools.partial(nn.Dense, dtype=dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=dtype)
        normal, count = nn.initializers.normal(0.02), (config.image_size // config.patch_size) ** 2 + 1
        class_token = self.param("cls_token", normal, (1, 1, config.width))
        x = embed_patches(pixels, class_token, config.patch_size, dtype, "patch_embed.proj", use_bias=True)
        x = x + self.param("pos_embed", normal, (1, count, config.width)).astype(dtype)
        for block in (f"blocks.{i}" for i in range(config.layers)):
            h = dense(3 * config.width, name=f"{block}.attn.qkv")(norm(name=f"{block}.norm1")(x))
            query, key, value = jnp.split(h, 3, axis=-1)
            attended = attention(query, key, value, config.heads)
            x = x + dense(config.width, name=f"{block}.attn.proj")(attended)
            h = dense(config.intermediate, name=f"{block}.mlp.fc1")(norm(name=f"{block}.norm2")(x))
            x = x + dense(config.width, name=f"{block}.mlp.fc2")(nn.gelu(h, approximate=False))
        return norm(name="norm")(x)


class TextEncoder(nn.Module):
    """Token ids, which attend to each other and to an image's states, to their states in float32; 0 is padding."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32

    @precise
    @nn.compact
    def __call__(self, token_ids: Int[Array, "n k"], image_states: Float[Array, "n t v"]) -> Float[Array, "n k d"]:
        config, dtype = self.config, self.dtype
        dense = functools.partial(nn.Dense, dtype=dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-12, dtype=dtype)
        padding = jnp.where(token_ids == 0, -jnp.inf, 0.0)[:, None, None, :]

        def attended(name, x, states, mask=None):
            names = [f"{name}.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
            return norm(name=f"{name}.output.LayerNorm")(attend(x, states, config.heads, dtype, names, mask) + x)

        words = nn.Embed(config.vocabulary, config.width, dtype=dtype, name="embeddings.word_embeddings")
        positions = nn.Embed(config.positions, config.width, dtype=dtype, name="embeddings.position_embeddings")
        x = norm(name="embeddings.LayerNorm")(words(token_ids) + positions(jnp.arange(token_ids.shape[1])))
        for layer in (f"encoder.layer.{i}" for i in range(config.layers)):
            x = attended(f"{layer}.attention", x, x, padding)
            x = attended(f"{layer}.crossattention", x, image_states)
            h = nn.gelu(dense(config.intermediate, name=f"{layer}.intermediate.dense")(x), approximate=False)
            x = norm(name=f"{layer}.output.LayerNorm")(dense(config.width, name=f"{layer}.output.dense")(h) + x)
        return x.astype(jnp.float32)
