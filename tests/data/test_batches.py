import numpy as np
import pytest

from hgdpo_jax.data.batches import ShuffledBatches
from hgdpo_jax.data.pairs import open_pairs, write_pairs
from hgdpo_jax.errors import UserError

PAIRS, BATCH = 10, 4


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
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
    return open_pairs(folder)


def order(pairs, seed, epochs):
    """Numbers of the pairs in the order of the batches."""
    batches = ShuffledBatches(pairs, BATCH, seed)
    steps = range(epochs * PAIRS // BATCH)
    return np.concatenate([batches[step]["winner_index"] for step in steps]).reshape(epochs, PAIRS)


def test_every_epoch_holds_each_pair_once_in_another_order(pairs):
    epochs = order(pairs, seed=0, epochs=4)
    assert (np.sort(epochs, axis=1) == np.arange(PAIRS)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_is_a_function_of_seed_and_step_alone(pairs):
    first, second = ShuffledBatches(pairs, BATCH, 7), ShuffledBatches(pairs, BATCH, 7)
    assert first[0]
    for step in (5, 2, 1000):
        ours, theirs = first[step], second[step]
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name])


def test_another_seed_gives_another_order(pairs):
    assert (order(pairs, seed=0, epochs=2) != order(pairs, seed=1, epochs=2)).any()


def test_what_belongs_together_stays_together(pairs):
    batch = ShuffledBatches(pairs, BATCH, 0)[2]
    assert batch["winner_latents"].shape == (BATCH, 2, 2, 4)
    assert batch["winner_latents"].dtype == np.float32
    for row, number in enumerate(batch["winner_index"]):
        assert batch["prompt"][row] == f"prompt {number}"
        assert (batch["winner_latents"][row] == number).all()
        assert (batch["loser_latents"][row] == -number).all()


def test_a_batch_may_be_larger_than_the_data_set(pairs):
    batches = ShuffledBatches(pairs, 2 * PAIRS, 0)
    assert sorted(batches[0]["winner_index"]) == sorted(2 * list(range(PAIRS)))


def test_a_batch_holds_what_is_taken_of_each_row(pairs):
    batch = ShuffledBatches(pairs, BATCH, 0, lambda pair: {"number": pair["winner_index"]})[0]
    assert set(batch) == {"number"}
    assert batch["number"].tolist() == ShuffledBatches(pairs, BATCH, 0)[0]["winner_index"].tolist()


def test_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(UserError, match="run the stage select_pairs"):
        open_pairs(tmp_path)
