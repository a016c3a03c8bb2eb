import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hgdpo_jax.data.pairs import open_pairs, write_pairs
from hgdpo_jax.errors import UserError

WRITE_AND_READ = """
import json, runpy, sys
make_pairs, contents = (runpy.run_path(sys.argv[2])[name] for name in ("make_pairs", "contents"))
from pathlib import Path
from hgdpo_jax.data.pairs import write_pairs
write_pairs(sys.argv[1], make_pairs(5), (4, 3, 4))
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(sys.argv[1]).as_data_source(split="train")
first = source[0]
print(json.dumps({
    "tensorflow": "tensorflow" in sys.modules,
    "length": len(source),
    "prompt": first["prompt"].decode(),
    "type": str(first["winner_latents"].dtype),
    "shape": first["winner_latents"].shape,
    "files": contents(Path(sys.argv[1])),
}))
"""


def make_pairs(count, shape=(4, 3, 4)):
    random = np.random.default_rng(0)
    for number in range(count):
        winner, loser = random.normal(size=(2, *shape)).astype(np.float16)
        yield {
            "prompt": f"portrait no. {number}, café",
            "winner_latents": winner,
            "loser_latents": loser,
            "winner_score": np.float32(20 + number / 3),
            "loser_score": np.float32(number / 3),
            "winner_index": number % 7,
            "loser_index": number % 5 + 7,
        }


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_pairs_come_back_as_they_were_given(tmp_path):
    assert write_pairs(tmp_path, make_pairs(3), (4, 3, 4)) == 3
    read = open_pairs(tmp_path)
    assert len(read) == 3
    for number, pair in enumerate(make_pairs(3)):
        assert read[number]["winner_latents"].dtype == np.float32
        for name, value in pair.items():
            np.testing.assert_array_equal(read[number][name], value)


def test_tfds_opens_pairs_without_tensorflow_and_another_process_writes_the_same_bytes(tmp_path):
    write_pairs(tmp_path / "here", make_pairs(5), (4, 3, 4))
    there = tmp_path / "there"
    there.mkdir()
    output = subprocess.run(
        [sys.executable, "-c", WRITE_AND_READ, str(there), __file__],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "5"},
    ).stdout
    assert json.loads(output) == {
        "tensorflow": False,
        "length": 5,
        "prompt": "portrait no. 0, café",
        "type": "float16",
        "shape": [4, 3, 4],
        "files": contents(tmp_path / "here"),
    }


def test_pairs_keep_their_order_over_several_files(tmp_path):
    assert write_pairs(tmp_path, make_pairs(1030, (1, 1, 4)), (1, 1, 4)) == 1030
    assert len(list(tmp_path.glob("*array_record*"))) == 2
    read = open_pairs(tmp_path)
    for number in (0, 1023, 1024, 1029):
        assert read[number]["prompt"] == f"portrait no. {number}, café"


def test_what_was_not_written_to_the_end_is_no_data_set(tmp_path):
    def interrupted():
        yield from make_pairs(3)
        raise KeyboardInterrupt

    write_pairs(tmp_path, make_pairs(2), (4, 3, 4))
    with pytest.raises(KeyboardInterrupt):
        write_pairs(tmp_path, interrupted(), (4, 3, 4))
    assert not list(tmp_path.glob("*array_record*"))
    with pytest.raises(UserError, match="holds no pairs"):
        open_pairs(tmp_path)


def test_writing_again_leaves_nothing_of_what_was_there(tmp_path):
    (tmp_path / "pairs.partial").mkdir()
    (tmp_path / "pairs.partial" / "leftover").write_text("of a killed run")
    write_pairs(tmp_path, make_pairs(1030, (1, 1, 4)), (1, 1, 4))
    write_pairs(tmp_path, make_pairs(2, (1, 1, 4)), (1, 1, 4))
    names = ["dataset_info.json", "features.json", "pairs-train.array_record-00000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_no_pairs_at_all_are_refused(tmp_path):
    with pytest.raises(UserError, match="all scores are equal"):
        write_pairs(tmp_path, [], (4, 3, 4))
