import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.models.attention import FEW_SCORES, MOST_SCORES_ON_CPU, attention

IMAGES, HEADS = 2, 2
KEYS = 1500
LENGTHS = {
    "few scores": (100, 77),
    "one block": (FEW_SCORES // 77 + 100, 77),
    "nine blocks a head, the last not full": (8 * (MOST_SCORES_ON_CPU // IMAGES // KEYS) + 500, KEYS),
}
# Two thirds of a first level at 704x1024, with the head size of Stable Diffusion.
SHAPE = (2, 8192, HEADS * 40)


def plain(query, key, value):
    query, key, value = (x.reshape(*x.shape[:2], HEADS, -1) for x in (query, key, value))
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
    attended = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
    return attended.reshape(*attended.shape[:2], -1)


@functools.partial(jax.jit, static_argnums=0)
def result_and_gradients(function, arguments, direction):
    result, pull_back = jax.vjp(function, *arguments)
    return result, pull_back(direction)


def attend(query, key, value):
    return attention(query, key, value, HEADS)


@pytest.mark.parametrize(("queries", "keys"), LENGTHS.values(), ids=LENGTHS.keys())
# float32: sums of thousands in another order. bfloat16: results, and weights in between, are rounded to 8 bits.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 4e-3)])
def test_attention_and_its_gradients_are_those_of_all_scores_at_once(queries, keys, dtype, tolerance):
    random = np.random.default_rng(0)
    arguments = [jnp.asarray(random.normal(size=(IMAGES, n, 8 * HEADS)), dtype) for n in (queries, keys, keys)]
    direction = jnp.asarray(random.normal(size=(IMAGES, queries, 8 * HEADS)), dtype)
    precise = [x.astype(jnp.float32) for x in (*arguments, direction)]
    found = result_and_gradients(attend, arguments, direction)
    expected = result_and_gradients(plain, precise[:3], precise[3])

    def assert_close(found, expected):
        error = np.linalg.norm(found.astype(jnp.float32) - expected) / np.linalg.norm(expected)
        assert error < tolerance

    jax.tree.map(assert_close, found, expected)


def test_scores_of_many_queries_never_exist_at_once():
    shapes = [
        jax.ShapeDtypeStruct((1, count, 16), jnp.float32) for count in (16 * MOST_SCORES_ON_CPU // KEYS, KEYS, KEYS)
    ]

    def temporaries(function):
        gradient = jax.jit(jax.grad(lambda *x: function(*x).sum(), (0, 1, 2)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    # Thirty-two blocks: room for the scores of a few, and for queries and results.
    assert temporaries(attend) < temporaries(plain) / 3


@pytest.fixture
def cuda_plugin(monkeypatch):
    """Tracing for a GPU asks for the version of cuDNN, which tests run without; nothing else is needed to lower."""
    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", versions)


def lowered(platform, shape=SHAPE, dtype="bfloat16", implementation="auto"):
    """The gradient's program for a platform."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype)] * 3
    gradient = jax.grad(lambda *x: attention(*x, HEADS, implementation=implementation).sum(), (0, 1, 2))
    return jax.jit(gradient).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def has_scores(program):
    """Whether an array in the program has queries and keys, of a block or of all."""
    return bool(re.search(r"tensor<\dx\d{3,}x8192xf32>", program))


def test_a_program_for_a_gpu_calls_cudnn_and_has_no_scores(cuda_plugin):
    program = lowered("cuda")
    assert "__cudnn$fmhaSoftmax(" in program
    assert "__cudnn$fmhaSoftmaxBackward(" in program
    assert not has_scores(program)


def test_a_program_for_a_tpu_calls_splash_kernels_and_has_no_scores():
    program = lowered("tpu")
    # One for the result, one for its gradient to queries, keys and values.
    assert program.count("@tpu_custom_call(") == 2
    assert not has_scores(program)


@pytest.mark.parametrize(
    ("platform", "options"),
    [
        ("cpu", {}),
        ("tpu", {"dtype": "float32"}),
        ("tpu", {"implementation": "chunked"}),
        ("cuda", {"dtype": "float32"}),
        ("cuda", {"shape": (2, 8192, HEADS * 160)}),
        ("cuda", {"implementation": "chunked"}),
    ],
    ids=["CPU", "TPU, float32", "TPU, chunked", "GPU, float32", "GPU, large heads", "GPU, chunked"],
)
def test_elsewhere_scores_are_made_in_blocks(cuda_plugin, platform, options):
    program = lowered(platform, **options)
    assert "custom_call @" not in program
    assert has_scores(program)
    assert "8192x8192" not in program


def test_without_the_cuda_plugin_scores_are_made_in_blocks():
    # Two images more: what was traced with the plugin is remembered.
    assert has_scores(lowered("cuda", shape=(4, *SHAPE[1:])))
