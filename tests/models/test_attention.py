import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.models.attention import MOST_SCORES, attention

KEYS = 1500
# Three blocks, the last of them not full.
QUERIES = 2 * (MOST_SCORES // KEYS) + 700


def plain(query, key, value, heads):
    query, key, value = (x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value))
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
    attended = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
    return attended.reshape(*attended.shape[:2], -1)


@pytest.fixture(scope="module")
def arguments():
    random = np.random.default_rng(0)
    return [random.normal(size=(1, count, 16)).astype(np.float32) for count in (QUERIES, KEYS, KEYS)]


def test_many_queries_attend_as_in_one_piece_and_so_do_their_gradients(arguments):
    direction = np.random.default_rng(1).normal(size=(1, QUERIES, 16)).astype(np.float32)

    def value_and_gradients(function):
        return jax.jit(jax.value_and_grad(lambda *x: jnp.vdot(function(*x, 2), direction), (0, 1, 2)))(*arguments)

    found, expected = value_and_gradients(attention), value_and_gradients(plain)
    # Sums of thousands of float32 in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_scores_of_many_queries_never_exist_at_once():
    shapes = [jax.ShapeDtypeStruct((1, count, 16), jnp.float32) for count in (16 * MOST_SCORES // KEYS, KEYS, KEYS)]

    def temporaries(function):
        gradient = jax.jit(jax.grad(lambda *x: function(*x, 2).sum(), (0, 1, 2)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    # Sixteen blocks: room for the scores of a few, and for queries and results.
    assert temporaries(attention) < temporaries(plain) / 3
