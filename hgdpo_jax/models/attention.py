"""Scaled dot-product attention whose memory grows with the number of tokens, not with its square."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from hgdpo_jax.models import splash_attention
from hgdpo_jax.models.precision import precision_of
from hgdpo_jax.models.remat import keep

IMPLEMENTATIONS = ("auto", "chunked")

# Up to this many scores per head are computed at once and kept for the gradient: CLIP's 257 patches have half as many.
FEW_SCORES = 2**17
# Scores of an image that exist at once. At 512x512 the first level has 8 times as many in all, at 704x1024 60 times.
MOST_SCORES = 2**24
# Scores of a whole batch that exist at once on a CPU, so that they fit its caches: three times as fast at 512x512.
MOST_SCORES_ON_CPU = 2**21


def attention(
    query: Float[Array, "n q d"],
    key: Float[Array, "n k d"],
    value: Float[Array, "n k d"],
    heads: int,
    mask: Float[Array, "..."] | None = None,
    implementation: str = "auto",
) -> Float[Array, "n q d"]:
    """Multi-head attention, softmax in float32; `mask` is added to the scores `[n, heads, q, k]`.

    Few scores, and those with a mask, are computed at once and kept. Otherwise blocks of some heads, or of some queries
    of one head, are computed one after another, and the gradient recomputes each block's scores: all scores of the
    11,264 tokens of a 704x1024 image are 4 GB. With "auto", programs for NVIDIA GPUs use cuDNN's fused kernels instead
    of blocks, and programs for TPUs JAX's splash kernels, if these support the type and the head size.
    """
    query, key, value = (rearrange(x, "n t (h d) -> n h t d", h=heads) for x in (query, key, value))
    if mask is not None or query.shape[2] * key.shape[2] <= FEW_SCORES:
        attended = keep(_attend(query, key, value, mask))
    else:
        # Chosen when a program is lowered, not when it is traced: it may be compiled for another machine.
        ways: dict[str, Callable[..., jax.Array]] = {
            "cpu": functools.partial(_attend_in_blocks, most_scores=MOST_SCORES_ON_CPU // len(query)),
            "default": functools.partial(_attend_in_blocks, most_scores=MOST_SCORES),
        }
        if implementation == "auto" and _cudnn_supports(query, key):
            ways["cuda"] = _attend_by_cudnn
        if implementation == "auto" and splash_attention.supports(query, key):
            ways["tpu"] = splash_attention.splash_attention
        attended = jax.lax.platform_dependent(query, key, value, **ways)
    return rearrange(attended, "n h t d -> n t (h d)")


@jax.custom_vjp
def _scores(query, key):
    """Products of all queries with all keys, float32; their gradient is computed in the type of queries and keys."""
    return jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)


def _scores_gradient(operands, gradient):
    query, key = operands
    # As in fused kernels: a float32 gradient would make both products float32, at a fraction of the speed.
    gradient = gradient.astype(query.dtype)
    # Traced while the program is differentiated, outside the module that called.
    with precision_of(query.dtype):
        return jnp.einsum("...qk,...kd->...qd", gradient, key), jnp.einsum("...qk,...qd->...kd", gradient, query)


_scores.defvjp(lambda query, key: (_scores(query, key), (query, key)), _scores_gradient)


def _attend(query, key, value, mask=None):
    scores = _scores(query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("...qk,...kd->...qd", weights, value)


def _attend_in_blocks(query, key, value, most_scores):
    """The same with at most `most_scores` of an image at once, in blocks of equal size; the last one is padded."""
    heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
    together = next(n for n in range(heads, 0, -1) if heads % n == 0 and (n == 1 or n * queries * keys <= most_scores))
    count = -(-together * queries // max(1, most_scores // keys))
    size = -(-queries // count)
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, count * size - queries), (0, 0)))
    # Images and heads are one axis: with a second of size one, XLA for CPUs takes four times as long for a gradient.
    blocks = rearrange(padded, "n (p h) (b q) d -> p b (n h) q d", h=together, b=count)
    # The gradients of all blocks are summed in this type: a sum of sixty in bfloat16 would be off by one per cent.
    key32, value32 = (rearrange(x.astype(jnp.float32), "n (p h) k d -> p (n h) k d", h=together) for x in (key, value))

    def attend_heads(some_heads):
        blocks, key32, value32 = some_heads

        @jax.checkpoint
        def attend(block):
            return _attend(block, key32.astype(key.dtype), value32.astype(value.dtype))

        return jax.lax.map(attend, blocks)

    attended = jax.lax.map(attend_heads, (blocks, key32, value32))
    return keep(rearrange(attended, "p b (n h) q d -> n (p h) (b q) d", h=together)[:, :, :queries])


def _attend_by_cudnn(query, key, value):
    # cuDNN expects tokens before heads, as they are in the projections: the compiler drops both transpositions.
    tokens_first = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.nn.dot_product_attention(*tokens_first, implementation="cudnn").swapaxes(1, 2)


def _cudnn_supports(query, key) -> bool:
    # Heads are limited to 128 on Ampere and to 256 on later GPUs, and the target is unknown while a program is traced.
    # The gradient needs even lengths, which excludes the few tokens of a prompt.
    size, lengths = query.shape[-1], (query.shape[2], key.shape[2])
    if query.dtype not in (jnp.bfloat16, jnp.float16) or size > 128 or size % 8 or any(n % 2 for n in lengths):
        return False
    try:
        # Raises without the CUDA plugin, which compiling for such a GPU needs.
        jax.eval_shape(_attend_by_cudnn, query, query, query)
    except RuntimeError:
        return False
    return True
