"""A small convolutional classifier with one head an attribute: the eyes of the toon world's oracle."""

import flax.linen as nn
from jaxtyping import Array, Float

from hgdpo_jax.models.convolution import convolution
from hgdpo_jax.models.layers import GroupNorm
from hgdpo_jax.models.precision import precise


class AttributeClassifier(nn.Module):
    """Pixels in [-1, 1] to the logits of every attribute; `classes` holds each name and its number of classes."""

    classes: tuple[tuple[str, int], ...]
    channels: tuple[int, ...] = (16, 32, 64, 64)
    width: int = 192

    @precise
    @nn.compact
    def __call__(self, pixels: Float[Array, "n height width 3"]) -> dict[str, Float[Array, "n classes"]]:
        x = convolution(self.channels[0], "conv_in", pixels.dtype)(pixels)
        for i, channels in enumerate(self.channels[1:]):
            x = nn.silu(GroupNorm(8, 1e-5, pixels.dtype, name=f"norms.{i}")(x))
            x = convolution(channels, f"convs.{i}", pixels.dtype, stride=2)(x)
        # Where a part lies matters as much as that it is there, so positions are kept.
        x = nn.silu(GroupNorm(8, 1e-5, pixels.dtype, name="norm_out")(x)).reshape(x.shape[0], -1)
        x = nn.silu(nn.Dense(self.width, name="hidden")(x))
        return {name: nn.Dense(count, name=f"heads.{name}")(x) for name, count in self.classes}
