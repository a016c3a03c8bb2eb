import io

import pyarrow
import pytest
from pyarrow import parquet

from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError


def parquet_bytes(**columns) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


@pytest.fixture
def data_set(hub):
    """A data set of the hub with two files of captions, and others beside them."""
    hub.files["datasets/studio/people"] = {
        "README.md": b"",
        "captions.csv": b"caption\na man\n",
        "data/test-0.parquet": parquet_bytes(caption=["a test"]),
        "data/train-0.parquet": parquet_bytes(caption=["a man", None], faces=[1, 2]),
        "data/train-1.parquet": parquet_bytes(caption=["a woman", "two women"], faces=[1, 2]),
    }
    return "hf://datasets/studio/people"


def test_prompts_come_from_all_files_of_the_hub_that_an_address_means_and_no_others_are_fetched(data_set, hub):
    assert load_prompts(f"{data_set}/data/train-*.parquet:caption") == ["a man", "a woman", "two women"]
    assert load_prompts(f"{data_set}/data/train-*.parquet:caption:faces=1") == ["a man", "a woman"]
    fetched = {path.rpartition("/")[2] for path in hub.requests if "/resolve/" in path}
    assert fetched == {"train-0.parquet", "train-1.parquet"}
    assert load_prompts(f"{data_set}@v2/captions.csv:caption") == ["a man"]


def test_without_a_network_the_cached_files_are_read(data_set, hub):
    first = load_prompts(f"{data_set}/data/train-*.parquet:caption")
    hub.disconnect()
    assert load_prompts(f"{data_set}/data/train-*.parquet:caption") == first
    with pytest.raises(UserError, match="studio/people is neither .* nor in the hub's cache"):
        load_prompts(f"{data_set}/captions.csv:caption")
    with pytest.raises(UserError, match="studio/others is neither .* nor in the hub's cache"):
        load_prompts("hf://datasets/studio/others/captions.csv:caption")


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("/valid.csv:caption", "has no file valid.csv, expected one of README.md, captions.csv, data/test-0.parquet"),
        ("/data/test-0.parquet", "is a table, expected .*:COLUMN with one of caption"),
        ("/data/train-0.parquet:text", "has no column 'text', expected .* one of caption, faces"),
        ("/data/train-0.parquet:faces", "has 1 as 'faces', expected a text"),
        (":caption", "names no file of the hub, expected hf://datasets/OWNER/NAME/FILE"),
        ("@v3/captions.csv:caption", "has no revision v3"),
    ],
)
def test_what_the_data_set_does_not_have_is_told_in_one_line(data_set, rest, message):
    with pytest.raises(UserError, match=message) as error:
        load_prompts(data_set + rest)
    assert len(str(error.value).splitlines()) == 1


def test_a_broken_parquet_file_is_refused(tmp_path):
    (tmp_path / "people.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="people.parquet cannot be read"):
        load_prompts(f"{tmp_path / 'people.parquet'}:caption")
