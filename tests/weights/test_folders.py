import json
import shutil

import numpy as np
import pytest
from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.clip_tokenizer import TOKENIZER_FILES, load_tokenizer
from hgdpo_jax.weights.folders import (
    content_fingerprint,
    copy_files,
    read_json,
    read_tensor_file,
    read_weights,
)
from hgdpo_jax.weights.tensor_files import save_tensors


def test_the_fingerprint_follows_contents_and_names_alone(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "unet").mkdir(parents=True)
        (tmp_path / folder / "unet" / "config.json").write_text("{}")
    (tmp_path / "two" / "README.md").write_text("A model card.")
    first = content_fingerprint(tmp_path / "one")
    assert first == content_fingerprint(tmp_path / "two")
    (tmp_path / "two" / "unet" / "config.json").write_text("{ }")
    assert first != content_fingerprint(tmp_path / "two")
    (tmp_path / "one" / "unet").rename(tmp_path / "one" / "vae")
    assert first != content_fingerprint(tmp_path / "one")


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_broken_json_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json") as error:
        read_json(tmp_path / "config.json")
    assert len(str(error.value).splitlines()) == 1


def test_the_fingerprint_of_a_file_follows_its_content_alone(tmp_path):
    for name, content in (("a.safetensors", b"1"), ("b.ckpt", b"1"), ("c.ckpt", b"2")):
        (tmp_path / name).write_bytes(content)
    first, same, other = (content_fingerprint(tmp_path / name) for name in ("a.safetensors", "b.ckpt", "c.ckpt"))
    assert first == same != other


@pytest.fixture
def shards(tmp_path):
    """A folder with weights in two files and the index of them."""
    places = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors", "c": "model-2-of-2.safetensors"}
    for shard in set(places.values()):
        save_tensors(tmp_path / shard, {name: np.full(2, ord(name)) for name in places if places[name] == shard})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return epath.Path(tmp_path)


def test_weights_in_shards_are_put_together(shards):
    tensors = read_weights(shards, "model")
    assert {name: int(array[0]) for name, array in tensors.items()} == {name: ord(name) for name in "abc"}


def test_shards_that_do_not_hold_what_the_index_lists_are_refused(shards):
    save_tensors(shards / "model-2-of-2.safetensors", {"b": np.zeros(2), "d": np.zeros(2)})
    with pytest.raises(UserError, match="index.json and its files differ in where c, d lies"):
        read_weights(shards, "model")
    (shards / "model-2-of-2.safetensors").unlink()
    with pytest.raises(UserError, match="model-2-of-2.safetensors does not exist"):
        read_weights(shards, "model")


def test_an_index_names_files_beside_it_only(shards):
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(UserError, match="index.json names '../other.safetensors' as a file of weights, expected one"):
        read_weights(shards, "model")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="x.gguf is no file of weights, expected .safetensors or .bin"):
        read_tensor_file(epath.Path(tmp_path / "x.gguf"))


def test_a_copied_tokenizer_gives_the_ids_of_its_source(tokenizer_folder, tmp_path):
    plain, added, copy = epath.Path(tokenizer_folder), epath.Path(tmp_path / "added"), epath.Path(tmp_path / "copy")
    shutil.copytree(plain, added)
    # As transformers before 4.34 saved a word of a textual inversion.
    (added / "added_tokens.json").write_text(json.dumps({"<toy>": 54}))
    ids = {folder: load_tokenizer(folder)("a <toy>")["input_ids"] for folder in (plain, added)}
    assert 54 in ids[added] and 54 not in ids[plain]
    for source in (added, plain, added):
        # Nothing stays of the one that was there before.
        copy_files(source, copy, TOKENIZER_FILES)
        assert load_tokenizer(copy)("a <toy>")["input_ids"] == ids[source]
