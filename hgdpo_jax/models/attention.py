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

# Scores of one head up to which all are made at once and kept for the gradient: CLIP's 257 patches have half as many.
FEW_SCORES = 2**17
# Scores of an image that exist at once. At 512x512 a whole first level has 8 times as many, at 704x1024 60 times.
MOST_SCORES = 2**24
# Scores of a whole batch that exist at once on a CPU, what its caches hold: three times as fast at 512x512.
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

    Few scores, and those with a mask, are made at once and kept. Many go in blocks, some heads or some queries of one
    head after another, and the gradient makes each block's scores again: of a 704x1024 image's 11,264 tokens all
    scores are 4 GB. With "auto" a program for an NVIDIA GPU has cuDNN's fused kernels instead of the blocks, one for a
    TPU JAX's splash kernels, where they support type and head size.
    """
    query, key, value = (rearrange(x, "n t (h d) -> n h t d", h=heads) for x in (query, key, value))
    if mask is not None or query.shape[2] * key.shape[2] <= FEW_SCORES:
        attended = keep(_attend(query, key, value, mask))
    else:
        # Chosen where a program is lowered, not where it is traced: it may be compiled for a machine that is not here.
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
    """Products of all queries with all keys, float32; their gradient is made in the type of queries and keys."""
    return jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)


def _scores_gradient(operands, gradient):
    query, key = operands
    # As fused kernels have it: left in float32, it would make both products float32's, at a fraction of the speed.
    gradient = gradient.astype(query.dtype)
    # Traced while the program is differentiated, outside of the module that called.
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
    """The same, for at most `most_scores` of an image at once; every block has as many queries, the last filled up."""
    heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
    together = next(n for n in range(heads, 0, -1) if heads % n == 0 and (n == 1 or n * queries * keys <= most_scores))
    count = -(-together * queries // max(1, most_scores // keys))
    size = -(-queries // count)
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, count * size - queries), (0, 0)))
    # Images and heads are one axis: with a second of size one, XLA for CPUs takes four times as long for a gradient.
    blocks = rearrange(padded, "n (p h) (b q) d -> p b (n h) q d", h=together, b=count)
    # The gradients of all blocks are summed in this type: sixty in bfloat16 would be off by a hundredth.
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
