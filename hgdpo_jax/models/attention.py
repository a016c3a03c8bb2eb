"""Scaled dot-product attention whose memory grows with the number of tokens, not with its square."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from hgdpo_jax.models.remat import keep

IMPLEMENTATIONS = ("auto", "chunked")

# Scores of one head up to which all are made at once and kept for the gradient: CLIP's 257 patches have half as many.
FEW_SCORES = 2**17
# Scores of one head that exist at once. At 512x512 a whole first level has 8 times as many, at 704x1024 60 times.
MOST_SCORES = 2**21


def attention(
    query: Float[Array, "n q d"],
    key: Float[Array, "n k d"],
    value: Float[Array, "n k d"],
    heads: int,
    mask: Float[Array, "..."] | None = None,
    implementation: str = "auto",
) -> Float[Array, "n q d"]:
    """Multi-head attention, softmax in float32; `mask` is added to the scores `[n, heads, q, k]`.

    Few scores, and those with a mask, are made at once and kept. Many go one block of queries after another, and the
    gradient makes each block's scores again: of a 704x1024 image's 11,264 tokens all scores are 4 GB. With "auto" a
    program for an NVIDIA GPU has cuDNN's fused kernels instead of the blocks, where they support type and head size.
    """
    query, key, value = (rearrange(x, "n t (h d) -> n h t d", h=heads) for x in (query, key, value))
    if mask is not None or query.shape[2] * key.shape[2] <= FEW_SCORES:
        attended = keep(_attend(query, key, value, mask))
    elif implementation == "auto" and _cudnn_supports(query, key):
        # Chosen where a program is lowered, not where it is traced: it may be compiled for a machine that is not here.
        attended = jax.lax.platform_dependent(query, key, value, cuda=_attend_by_cudnn, default=_attend_in_blocks)
    else:
        attended = _attend_in_blocks(query, key, value)
    return rearrange(attended, "n h t d -> n t (h d)")


def _attend(query, key, value, mask=None):
    scores = jnp.einsum("nhqd,nhkd->nhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("nhqk,nhkd->nhqd", weights, value)


def _attend_in_blocks(query, key, value):
    """The same, for at most `MOST_SCORES` at once; every block has as many queries, the last one filled up."""
    queries = query.shape[2]
    count = -(-queries // max(1, MOST_SCORES // key.shape[2]))
    size = -(-queries // count)
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, count * size - queries), (0, 0)))
    blocks = rearrange(padded, "n h (b q) d -> b n h q d", b=count)
    # The gradients of all blocks are summed in this type: sixty in bfloat16 would be off by a hundredth.
    key32, value32 = key.astype(jnp.float32), value.astype(jnp.float32)

    @jax.checkpoint
    def attend(block):
        return _attend(block, key32.astype(key.dtype), value32.astype(value.dtype))

    attended = jax.lax.map(attend, blocks)
    return keep(rearrange(attended, "b n h q d -> n h (b q) d")[:, :, :queries])


def _attend_by_cudnn(query, key, value):
    # Its tokens come before its heads, as they do in the projections: the compiler drops both transpositions.
    tokens_first = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.nn.dot_product_attention(*tokens_first, implementation="cudnn").swapaxes(1, 2)


def _cudnn_supports(query, key) -> bool:
    # 128 on Ampere, 256 on later cards: which one it will be is not known while a program is traced. The gradient needs
    # even lengths, which leaves out the 77 tokens of a prompt, and these are few.
    size, lengths = query.shape[-1], (query.shape[2], key.shape[2])
    if query.dtype not in (jnp.bfloat16, jnp.float16) or size > 128 or size % 8 or any(n % 2 for n in lengths):
        return False
    try:
        # It looks for the CUDA plugin, without which no program for such a GPU can be compiled.
        jax.eval_shape(_attend_by_cudnn, query, query, query)
    except RuntimeError:
        return False
    return True
