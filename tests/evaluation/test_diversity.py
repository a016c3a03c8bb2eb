import numpy as np
import pytest

from hgdpo_jax.evaluation.diversity import diversity


def test_diversity_is_the_mean_distance_of_all_pairs_within_a_prompt():
    random = np.random.default_rng(0).normal(size=(4, 3, 8))
    embeddings = random / np.linalg.norm(random, axis=-1, keepdims=True)
    distances = [1 - e[i] @ e[j] for e in embeddings for i in range(3) for j in range(i)]
    assert diversity(embeddings.astype(np.float32)) == pytest.approx(np.mean(distances), abs=1e-6)


def test_an_unusable_image_has_no_part_in_the_diversity():
    embeddings = np.float32([[[1, 0], [0, 1], [np.nan, 0]], [[1, 0], [np.nan, 0], [0, np.inf]]])
    assert diversity(embeddings) == pytest.approx(1)
    assert diversity(embeddings[1:]) is None


def test_equal_images_have_no_diversity_and_single_ones_none_to_tell():
    one = np.zeros((2, 3, 4))
    one[..., 0] = 1
    assert diversity(one) == pytest.approx(0)
    assert diversity(one[:, :1]) is None
