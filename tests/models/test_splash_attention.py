"""Attention for TPUs: its kernels interpreted, and the programs that hold them."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from hgdpo_jax.models.attention import attention
from hgdpo_jax.models.splash_attention import splash_attention

IMAGES, HEADS = 2, 2


def plain(query, key, value):
    scores = jnp.einsum("nhqd,nhkd->nhqk", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("nhqk,nhkd->nhqd", jax.nn.softmax(scores), value)


def result_and_gradients(function, arguments, direction):
    result, pull_back = jax.vjp(function, *arguments)
    return result, *pull_back(direction)


@pytest.mark.parametrize(
    ("queries", "keys", "size"),
    [(300, 256, 160), (256, 77, 80), (1500, 3000, 40)],
    ids=["padded queries", "padded keys of a prompt", "blocks of both, padded"],
)
def test_splash_attention_and_its_gradients_are_those_of_all_scores_at_once(queries, keys, size):
    random = np.random.default_rng(0)
    arguments = [jnp.asarray(random.normal(size=(IMAGES, HEADS, n, size)), jnp.bfloat16) for n in (queries, keys, keys)]
    direction = jnp.asarray(random.normal(size=(IMAGES, HEADS, queries, size)), jnp.bfloat16)
    with pltpu.force_tpu_interpret_mode():
        found = result_and_gradients(splash_attention, arguments, direction)
    precise = [x.astype(jnp.float32) for x in (*arguments, direction)]
    expected = result_and_gradients(plain, precise[:3], precise[3])
    for ours, reference in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.linalg.norm(ours.astype(jnp.float32) - reference) / np.linalg.norm(reference)
        # Results, and queries after scaling, are rounded to 8 bits.
        assert error < 5e-3


def kernels_on_four_devices(images, size=40):
    """Types of the results of each kernel, in a program for attention and its gradient."""
    mesh = AbstractMesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp") if images % 4 == 0 else None))
    arguments = [jax.ShapeDtypeStruct((images, 1024, HEADS * size), jnp.bfloat16, sharding=rows)] * 3
    gradient = jax.jit(jax.grad(lambda *x: attention(*x, HEADS).sum(), (0, 1, 2)))
    program = gradient.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    return re.findall(r"stablehlo.custom_call @tpu_custom_call\(.*?\) -> (.*)", program)


def test_each_device_computes_the_attention_of_its_own_images():
    kernels = kernels_on_four_devices(images=8)
    assert len(kernels) == 2
    # Two of the eight images, with two heads each.
    assert all("tensor<4x1024x40xbf16>" in results and "tensor<16x" not in results for results in kernels)


def test_images_that_do_not_divide_among_the_devices_and_heads_too_large_are_left_to_the_compiler():
    assert kernels_on_four_devices(images=7) == []
    assert kernels_on_four_devices(images=8, size=512) == []


def test_without_the_kernels_in_jax_attention_goes_block_by_block(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.ops.tpu", None)
    # Images that no other test has: what was traced with the kernels is remembered.
    assert kernels_on_four_devices(images=12) == []
