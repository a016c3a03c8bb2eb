import numpy as np
import pytest

from hgdpo_jax.data.pair_loader import PairLoader
from hgdpo_jax.data.pairs import write_pairs
from hgdpo_jax.errors import UserError

PAIRS, BATCH = 10, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    pairs = [
        {
            "prompt": f"prompt {number}",
            "winner_latents": np.full((2, 2, 4), number, np.float16),
            "loser_latents": np.full((2, 2, 4), -number, np.float16),
            "winner_score": np.float32(number),
            "loser_score": np.float32(0),
            "winner_index": number,
            "loser_index": 0,
        }
        for number in range(PAIRS)
    ]
    write_pairs(folder, pairs, (2, 2, 4))
    return folder


def order(folder, seed, epochs):
    """Numbers of the pairs in the order in which the loader gives them."""
    loader = PairLoader(folder, BATCH, seed)
    steps = range(epochs * PAIRS // BATCH)
    return np.concatenate([loader.batch(step)["winner_index"] for step in steps]).reshape(epochs, PAIRS)


def test_every_epoch_holds_each_pair_once_in_another_order(folder):
    epochs = order(folder, seed=0, epochs=4)
    assert (np.sort(epochs, axis=1) == np.arange(PAIRS)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_is_a_function_of_seed_and_step_alone(folder):
    first, second = PairLoader(folder, BATCH, 7), PairLoader(folder, BATCH, 7)
    first.batch(0)
    for step in (5, 2, 1000):
        ours, theirs = first.batch(step), second.batch(step)
        assert ours.pop("prompts") == theirs.pop("prompts")
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name])


def test_another_seed_gives_another_order(folder):
    assert (order(folder, seed=0, epochs=2) != order(folder, seed=1, epochs=2)).any()


def test_what_belongs_together_stays_together(folder):
    batch = PairLoader(folder, BATCH, 0).batch(2)
    assert batch["winner_latents"].shape == (BATCH, 2, 2, 4)
    assert batch["winner_latents"].dtype == np.float32
    for row, number in enumerate(batch["winner_index"]):
        assert batch["prompts"][row] == f"prompt {number}"
        assert (batch["winner_latents"][row] == number).all()
        assert (batch["loser_latents"][row] == -number).all()


def test_a_batch_may_be_larger_than_the_data_set(folder):
    loader = PairLoader(folder, 2 * PAIRS, 0)
    assert sorted(loader.batch(0)["winner_index"]) == sorted(2 * list(range(PAIRS)))
    assert loader.pairs == PAIRS


def test_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(UserError, match="run the stage select_pairs"):
        PairLoader(tmp_path, BATCH, 0)
