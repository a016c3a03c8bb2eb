import numpy as np
import pytest

from hgdpo_jax.evaluation.rank_statistics import channel_statistics, rank_distances, summarize_ranks


def pools(count=6, size=4, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, size, 3, 2, 4)).astype(np.float16), random.normal(size=(count, size))


def statistics_of(latents):
    """Channel statistics of pools of latents."""
    return channel_statistics(latents.reshape(-1, *latents.shape[2:])).reshape(2, *latents.shape[:2], -1)


def cosine_distance(one, other):
    return 1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def test_distances_are_those_of_the_best_image_to_each_rank():
    latents, scores = pools()
    found = summarize_ranks(rank_distances(statistics_of(latents), scores))
    assert (found.prompts, found.ranks) == (6, [2, 3, 4])
    for name, function in (("mean_distance", np.mean), ("deviation_distance", np.std)):
        expected = np.array(
            [
                [
                    cosine_distance(
                        *(function(pool[i].astype(np.float64), axis=(0, 1)) for i in (order[0], order[rank]))
                    )
                    for rank in (1, 2, 3)
                ]
                for pool, order in zip(latents, np.argsort(-scores, axis=1), strict=True)
            ]
        )
        # Sums of float16 latents in float32.
        assert getattr(found, name) == pytest.approx(expected.mean(axis=0), abs=1e-5)
        assert getattr(found, f"{name}_error") == pytest.approx(expected.std(axis=0, ddof=1) / np.sqrt(6), abs=1e-5)


def test_a_colour_that_drifts_with_the_rank_shows_in_the_means_alone():
    latents, scores = pools(count=40, size=5)
    scores = np.broadcast_to(-np.arange(5.0), (40, 5))
    drifting = latents + 3 + np.arange(5)[:, None, None, None] * np.array([1, -1, 0, 0])
    found = summarize_ranks(rank_distances(statistics_of(drifting), scores))
    assert found.mean_distance == sorted(found.mean_distance) and found.mean_distance[-1] > 0.1
    growth = np.ptp(found.deviation_distance)
    assert growth < 4 * max(found.deviation_distance_error)
