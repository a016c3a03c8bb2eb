"""Scaled dot-product attention whose memory grows with the number of tokens, not with its square."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

# Scores of one head that exist at once. At 512x512 a whole first level has 8 times as many, at 704x1024 60 times.
MOST_SCORES = 2**21


def attention(
    query: Float[Array, "n q d"],
    key: Float[Array, "n k d"],
    value: Float[Array, "n k d"],
    heads: int,
    mask: Float[Array, "q k"] | None = None,
) -> Float[Array, "n q d"]:
    """Multi-head attention, softmax in float32; `mask` is added to the scores.

    Many queries without a mask go one block after another, and the gradient makes each block's scores again: of a
    704x1024 image's 11,264 tokens all scores are 4 GB.
    """
    query, key, value = (rearrange(x, "n t (h d) -> n h t d", h=heads) for x in (query, key, value))
    queries, keys = query.shape[2], key.shape[2]
    if mask is not None or queries * keys <= MOST_SCORES:
        attended = _attend(query, key, value, mask)
    else:
        attended = _attend_in_blocks(query, key, value, max(1, MOST_SCORES // keys))
    return rearrange(attended, "n h t d -> n t (h d)")


def _attend(query, key, value, mask=None):
    scores = jnp.einsum("nhqd,nhkd->nhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("nhqk,nhkd->nhqd", weights, value)


def _attend_in_blocks(query, key, value, most: int):
    """The same, for at most `most` queries at once; every block has as many, the last one filled up."""
    queries = query.shape[2]
    count = -(-queries // most)
    size = -(-queries // count)
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, count * size - queries), (0, 0)))
    blocks = rearrange(padded, "n h (b q) d -> b n h q d", b=count)
    attend = jax.checkpoint(functools.partial(_attend, key=key, value=value))
    attended = jax.lax.map(attend, blocks)
    return rearrange(attended, "b n h q d -> n h (b q) d")[:, :, :queries]
