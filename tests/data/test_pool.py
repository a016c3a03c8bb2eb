import os
import threading
import time

import numpy as np
import pytest
from etils import epath

from hgdpo_jax import leases
from hgdpo_jax.batching import finite_rows
from hgdpo_jax.data.pool import DamagedPartError, Pool, blocks_of, write_behind

PROMPTS = ["a man", "a woman", "a child", "a boy", "a girl"]


@pytest.fixture
def pool(tmp_path):
    return Pool(epath.Path(tmp_path))


def latents(rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 4, 3, 4)).astype(np.float32)


def test_lists_that_begin_alike_share_blocks():
    short, long = blocks_of(PROMPTS[:4], 2), blocks_of(PROMPTS, 2)
    assert [block.name for block in short] == [block.name for block in long[:2]]
    assert long[2].prompts == ("a girl",)


def test_block_name_depends_on_every_text_and_their_order():
    names = {blocks_of(prompts, 9)[0].name for prompts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])}
    assert len(names) == 4


def test_only_what_is_not_there_is_missing(pool):
    first, second, third = blocks = blocks_of(PROMPTS, 2)
    pool.latents.write(first, 0, latents(2))
    pool.latents.write(second, 1, latents(2))
    assert pool.latents.missing(blocks, 2) == [(first, 1), (second, 0), (third, 0), (third, 1)]
    assert pool.latents.missing(blocks[:1], 1) == []


def test_two_runs_share_a_pool_and_make_each_part_once(pool, monkeypatch, capsys):
    monkeypatch.setattr(leases, "_POLL_SECONDS", 0.01)
    blocks, made = blocks_of(["a", "b", "c"], 2), []

    def make(missing, images):
        assert images == 6
        time.sleep(0.1)
        for block, index in missing:
            made.append((block, index))
            pool.latents.write(block, index, np.zeros((len(block.prompts), 2, 2, 4)))

    runs = [threading.Thread(target=pool.latents.make_missing, args=(blocks, 2, make)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(made) == len(set(made)) == 4
    assert f"waiting for process {os.getpid()} on " in capsys.readouterr().out


def test_latents_come_back_in_half_precision_and_scores_in_full(pool):
    (block,) = blocks_of(PROMPTS, 9)
    drawn = latents(5)
    pool.latents.write(block, 0, drawn)
    pool.scores("abc").write(block, 0, drawn[:, 0, 0, 0])
    np.testing.assert_array_equal(pool.latents.read(block, 0), drawn.astype(np.float16))
    np.testing.assert_array_equal(pool.scores("abc").read(block, 0), drawn[:, 0, 0, 0])
    assert pool.scores("abd").missing([block], 1) == [(block, 0)]


def test_block_is_read_with_prompts_before_images(pool):
    (block,) = blocks_of(PROMPTS, 9)
    drawn = [latents(5, seed=i).astype(np.float16) for i in range(3)]
    for index, rows in enumerate(drawn):
        pool.latents.write(block, index, rows)
    read = pool.latents.read_block(block, 2)
    assert read.shape == (5, 2, 4, 3, 4)
    np.testing.assert_array_equal(read[:, 1], drawn[1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-7],
        lambda content: content[:-7] + bytes([content[-7] ^ 1]) + content[-6:],
        lambda content: b"",
    ],
    ids=["cut short", "altered", "emptied"],
)
def test_damaged_part_is_removed_with_a_warning(pool, damage, capsys):
    (block,) = blocks_of(PROMPTS, 9)
    pool.latents.write(block, 0, latents(5))
    path = pool.latents.path(block, 0)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedPartError):
        pool.latents.read(block, 0)
    assert pool.latents.missing([block], 1) == [(block, 0)]
    assert capsys.readouterr().err == f"warning: {path} was damaged and is made again\n"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_value_that_half_precision_does_not_hold_marks_its_image_alone(pool, value):
    (block,) = blocks_of(PROMPTS, 9)
    rows = latents(5)
    rows[3, 1, 1, 1] = value
    pool.latents.write(block, 2, rows)
    read = pool.latents.read(block, 2)
    assert finite_rows(read).tolist() == [True, True, True, False, True]
    np.testing.assert_array_equal(read[:3], rows[:3].astype(np.float16))


def test_writing_behind_keeps_the_order_and_ends_when_all_is_written():
    written = []

    def slowly(number):
        time.sleep(0.01)
        written.append(number)

    with write_behind() as write:
        for number in range(5):
            write(slowly, number)
    assert written == list(range(5))


def test_error_while_writing_behind_reaches_the_caller():
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        with write_behind() as write:
            write(fail)
