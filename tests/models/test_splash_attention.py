"""Attention for TPUs: its kernels interpreted, and the programs that hold them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

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
    [(256, 256, 40), (700, 77, 80), (1500, 3000, 40)],
    ids=["one block", "a prompt, whose block is filled up", "blocks of both, filled up"],
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


def test_each_device_computes_the_attention_of_its_own_images():
    mesh = AbstractMesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    images = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    arguments = [jax.ShapeDtypeStruct((8, HEADS, 1024, 40), jnp.bfloat16, sharding=images)] * 3
    gradient = jax.jit(jax.grad(lambda *x: splash_attention(*x).sum(), (0, 1, 2)))
    program = gradient.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    kernels = re.findall(r"stablehlo.custom_call @tpu_custom_call\(.*?\) -> (.*)", program)
    assert len(kernels) == 2
    # Two of the eight images, with two heads each.
    assert all("tensor<4x1024x40xbf16>" in results and "tensor<16x" not in results for results in kernels)
