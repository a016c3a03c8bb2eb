"""Attention to many tokens on TPUs by JAX's splash kernels, in which scores never leave the chip."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from hgdpo_jax.models.remat import KEPT

# Lanes of a TPU's registers: block sizes are multiples of them.
_LANES = 128
# The largest blocks of queries, and of keys that a kernel fetches at once, and the most scores that it computes at
# once, for the 16 MB of VMEM that kernels may use on a v4 and a v5e. Larger heads have blocks half as long.
_MOST_QUERIES, _MOST_KEYS, _MOST_SCORES, _SMALL_HEAD = 1408, 2816, 1408 * 256, 80
# The U-Net's largest heads are of 160, the autoencoder's one of 512.
_LARGEST_HEAD = 160


def supports(query: Array, key: Array) -> bool:
    """Whether the kernels support `[n, heads, tokens, size]` of these: bfloat16, images sharded evenly over devices."""
    fits = query.shape[3] <= _LARGEST_HEAD and len(query) % _devices(query) == 0
    return fits and query.dtype == key.dtype == jnp.bfloat16 and _kernels() is not None


def splash_attention(
    query: Float[Array, "n h q d"], key: Float[Array, "n h k d"], value: Float[Array, "n h k d"]
) -> Float[Array, "n h q d"]:
    """Scaled dot-product attention, softmax in float32; images are sharded over the devices of the arrays' mesh.

    Queries are rounded once more when they are scaled. The gradient recomputes the scores once, and keeps output and
    log-sum-exp (`remat.KEPT`), the output with heads padded to 128.
    """
    if _devices(query) == 1:
        return _attend(query, key, value)
    # The compiler cannot partition a kernel.
    mesh = jax.typeof(query).sharding.mesh
    images = PartitionSpec(mesh.axis_names)
    return jax.shard_map(_attend, mesh=mesh, in_specs=images, out_specs=images, check_vma=False)(query, key, value)


def _kernels() -> Any:
    """JAX's module of the kernels; None if it has moved, because it is experimental and traced for all hardware."""
    try:
        # Slow to import, and needed by few programs.
        from jax.experimental.pallas.ops.tpu import splash_attention
    except ImportError:
        return None
    return splash_attention


def _devices(array: Array) -> int:
    """The number of devices of a traced array's mesh; 1 without a mesh."""
    mesh = jax.typeof(array).sharding.mesh
    return 1 if mesh.empty else mesh.size


def _attend(query, key, value):
    splash = _kernels()
    images, _, queries, size = query.shape
    keys = key.shape[2]
    shorter = -(-size // _SMALL_HEAD)
    query_block, key_block = _block(queries, _MOST_QUERIES // shorter), _block(keys, _MOST_KEYS // shorter)
    lengths = range(_LANES, max(_LANES, _MOST_SCORES // query_block) + 1, _LANES)
    key_compute_block = max(length for length in lengths if key_block % length == 0)
    # Images and heads are one axis.
    query, key, value = (
        jnp.pad(rearrange(x, "n h t d -> (n h) t d"), ((0, 0), (0, -x.shape[2] % block), (0, 0)))
        for x, block in ((query * size**-0.5, query_block), (key, key_block), (value, key_block))
    )
    heads, padded_queries, padded_keys = len(query), query.shape[1], key.shape[1]
    tokens_last = splash.QKVLayout.SEQ_MINOR
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((padded_queries, padded_keys))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_kv_compute=key_compute_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_kv_dkv_compute=key_compute_block,
            # One kernel for all three gradients: two would compute the scores and their gradient twice.
            use_fused_bwd_kernel=True,
            # Memory pads the last axis to 128: tokens fill it, heads of 40 would need 3.2 times as much.
            q_layout=tokens_last,
            k_layout=tokens_last,
            v_layout=tokens_last,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KEPT,
    )
    segment_ids = None
    if padded_keys != keys:
        # No query attends to padding.
        key_ids = (jnp.arange(padded_keys) < keys).astype(jnp.int32)
        segment_ids = splash.SegmentIds(jnp.ones(padded_queries, jnp.int32), key_ids)
    attended = kernel(query, key, value, segment_ids)
    return rearrange(attended[:, :queries], "(n h) t d -> n h t d", n=images)


def _block(tokens: int, most: int) -> int:
    """The block size, at most `most`, with the least padding of the tokens; of several the largest."""
    sizes = range(_LANES, most + 1, _LANES)
    # Short blocks are mostly overhead.
    long_enough = [size for size in sizes if size >= min(most // 2, tokens)] or sizes[-1:]
    return min(long_enough, key=lambda size: (-tokens % size, -size))
