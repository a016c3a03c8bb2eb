"""Random keys that depend on what is drawn, not on where or in which batch."""

import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32


def image_key(seed: int, prompt: str, image_index: int) -> jax.Array:
    """The key of one image of a prompt's pool, from the prompt's text and not from its row in a list."""
    return _fold_image(_root(seed), jnp.asarray(_words(f"image {prompt}")), image_index)


def training_key(seed: int, step: int) -> jax.Array:
    """The key of one training step."""
    return jax.random.fold_in(_fold_words(_root(seed), jnp.asarray(_words("training"))), step)


def image_noise(
    seed: int, prompts: Sequence[str], image_indices: Int[np.ndarray, " n"], shape: Sequence[int]
) -> Float[Array, "n *shape"]:
    """Standard normal float32 noise, one sample of `shape` per image, from each image's own `image_key`.

    An image's noise is the same, bit for bit, whatever else is in the batch.
    """
    words = np.stack([_words(f"image {prompt}") for prompt in prompts])
    return _noise(_root(seed), words, np.asarray(image_indices, np.uint32), tuple(shape))


@functools.partial(jax.jit, static_argnums=3)
def _noise(root, words, image_indices, shape):
    keys = jax.vmap(_fold_image, in_axes=(None, 0, 0))(root, words, image_indices)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _root(seed: int) -> jax.Array:
    # Only threefry gives the same bits under vmap, on every accelerator, and however an array is divided.
    return jax.random.key(seed, impl="threefry2x32")


def _words(text: str) -> UInt32[np.ndarray, "8"]:
    """The SHA-256 of a text: names of different purposes cannot meet in one key."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), ">u4").astype(np.uint32)


def _fold_words(key: jax.Array, words: UInt32[Array, "8"]) -> jax.Array:
    return jax.lax.fori_loop(0, len(words), lambda i, folded: jax.random.fold_in(folded, words[i]), key)


def _fold_image(root: jax.Array, words: UInt32[Array, "8"], image_index) -> jax.Array:
    return jax.random.fold_in(_fold_words(root, words), image_index)
