"""Parts of a U-Net that reads text (diffusers `UNet2DConditionModel`)."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hgdpo_jax.models.convolution import convolution
from hgdpo_jax.models.layers import GroupNorm, attend, upsample
from hgdpo_jax.models.remat import keep


def timestep_embedding(
    timesteps: Int[Array, "n"], channels: int, flip_sin_to_cos: bool, freq_shift: int
) -> Float[Array, "n c"]:
    """Sinusoidal embedding of the timesteps in float32 (diffusers `get_timestep_embedding`)."""
    half = channels // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    parts = [jnp.cos(angles), jnp.sin(angles)] if flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts, axis=-1)


class TimestepEmbedding(nn.Module):
    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.channels, dtype=self.dtype, name="linear_1")(x)
        return nn.Dense(self.channels, dtype=self.dtype, name="linear_2")(nn.silu(x))


class Attention(nn.Module):
    """Attention of `x` to `context`; the LoRA of HG-DPO is added to its four projections."""

    heads: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x, context):
        return attend(x, context, self.heads, self.dtype, use_bias=False, implementation=self.attention)


class FeedForward(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        value, gate = jnp.split(keep(nn.Dense(8 * channels, dtype=self.dtype, name="net.0.proj")(x)), 2, axis=-1)
        # The exact GELU: the tanh form differs by more than float32 rounding.
        return nn.Dense(channels, dtype=self.dtype, name="net.2")(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    heads: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x, text_states):
        def norm(name, x):
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(x)

        def attention(name, x, context):
            return Attention(self.heads, self.dtype, self.attention, name=name)(x, context)

        attended = norm("norm1", x)
        x = keep(x + attention("attn1", attended, attended))
        x = keep(x + attention("attn2", norm("norm2", x), text_states))
        return x + FeedForward(self.dtype, name="ff")(norm("norm3", x))


class Transformer(nn.Module):
    """Self- and cross-attention over the pixels of a feature map (diffusers `Transformer2DModel`)."""

    heads: int
    groups: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, x, text_states):
        n, h, w, channels = x.shape
        # 1e-6 here, 1e-5 in the ResNet blocks: as in the reference.
        tokens = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        tokens = keep(convolution(channels, "proj_in", self.dtype, kernel=1)(tokens).reshape(n, h * w, channels))
        block = TransformerBlock(self.heads, self.dtype, self.attention, name="transformer_blocks.0")
        tokens = block(tokens, text_states)
        return x + convolution(channels, "proj_out", self.dtype, kernel=1)(tokens.reshape(n, h, w, channels))


class _Level(nn.Module):
    """A level of the way down or up; `resizes` says whether another level follows."""

    channels: int
    resnet: Callable[..., nn.Module]
    transformer: Callable[..., nn.Module] | None
    resizes: bool
    dtype: jnp.dtype

    def layer(self, i, x, time_state, text_states):
        x = self.resnet(self.channels, name=f"resnets.{i}")(x, time_state)
        return self.transformer(name=f"attentions.{i}")(x, text_states) if self.transformer else x


class DownBlock(_Level):
    @nn.compact
    def __call__(self, x, layers: int, time_state, text_states):
        skips = []
        for i in range(layers):
            x = self.layer(i, x, time_state, text_states)
            skips.append(x)
        if self.resizes:
            x = convolution(self.channels, "downsamplers.0.conv", self.dtype, stride=2)(x)
            skips.append(x)
        return x, skips


class UpBlock(_Level):
    @nn.compact
    def __call__(self, x, skips: Sequence[jax.Array], time_state, text_states):
        for i, skip in enumerate(reversed(skips)):
            x = self.layer(i, jnp.concatenate([x, skip], axis=-1), time_state, text_states)
        if self.resizes:
            x = convolution(self.channels, "upsamplers.0.conv", self.dtype)(upsample(x))
        return x
