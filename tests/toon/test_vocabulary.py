import json

import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.toon import vocabulary
from hgdpo_jax.toon.captions import prompts

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return transformers.CLIPTokenizer.from_pretrained(folder)


def _ids(tokenizer, texts):
    return tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="np").input_ids


def test_ids_start_end_and_are_padded_with_the_end_to_77(tokenizer):
    ids = _ids(tokenizer, ["a portrait of a person"])[0]
    assert len(ids) == 77 == tokenizer.model_max_length
    assert ids[0] == tokenizer.bos_token_id and ids[6] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert (ids[6:] == tokenizer.eos_token_id).all()
    assert tokenizer.eos_token_id not in ids[:6]


def test_the_end_has_the_largest_id(tokenizer, folder):
    ids = json.loads((folder / "vocab.json").read_text("utf-8"))
    assert max(ids.values()) == tokenizer.eos_token_id == len(tokenizer) - 1
    assert sorted(ids.values()) == list(range(len(ids)))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_caption_fits_well_below_77_tokens(tokenizer, split):
    texts = prompts(split, 1000)
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    assert max(lengths) <= 45
    assert sum(lengths) / len(lengths) < 35


def test_every_word_of_a_caption_is_one_token(tokenizer):
    for text in prompts("test", 200):
        assert all(token.endswith("</w>") for token in tokenizer.tokenize(text))


def test_captions_survive_the_round_trip(tokenizer):
    for text in prompts("test", 100):
        decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
        assert decoded.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text", ["zürich", "日本", "🎉 xyzzy", "ß\u200d\x07 ﬁ"])
def test_unknown_words_survive_the_round_trip_through_bytes(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.eos_token_id not in ids[1:-1]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_case_is_ignored(tokenizer):
    assert tokenizer("A PORTRAIT").input_ids == tokenizer("a portrait").input_ids


def test_the_files_are_the_same_every_time(folder, tmp_path):
    vocabulary.write_tokenizer(tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_smaller_vocabulary_has_fewer_merges(tmp_path):
    assert vocabulary.write_tokenizer(tmp_path, size=600) == 600
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer("astonished").input_ids) > 3


def test_a_vocabulary_too_small_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(UserError, match="514"):
        vocabulary.write_tokenizer(tmp_path, size=300)


def test_merges_join_the_most_frequent_pair_first():
    assert vocabulary.byte_pair_merges(["abab abab", "cd"], 3)[0] == ("a", "b")
