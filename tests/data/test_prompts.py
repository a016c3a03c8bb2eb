import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from hgdpo_jax.base_config import base_config
from hgdpo_jax.data.prompts import load_prompts, warn_long_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.clip_tokenizer import long_prompts


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff a man \n\na woman with é\na man\n\t\na child\n")
    return path


def test_blank_lines_and_repetitions_do_not_count(prompts_file):
    assert load_prompts(prompts_file) == ["a man", "a woman with é", "a child"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("name", "column"), [("a.txt", ""), ("a.jsonl", ":text"), ("a.csv", ":text"), ("a.tsv", ":text")]
)
def test_lines_end_at_newlines_and_nowhere_else(tmp_path, name, column, end):
    prompts = [f"one{character}prompt" for character in "\v\f\x1c\x1d\x1e\x85\u2028\u2029"]
    head, lines = (["text"], prompts) if column else ([], prompts)
    if name == "a.jsonl":
        head, lines = [], [json.dumps({"text": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / name).write_bytes(end.join([*head, *lines, ""]).encode())
    assert load_prompts(f"{tmp_path / name}{column}") == prompts


def test_count_takes_the_first_prompts(prompts_file):
    assert load_prompts(prompts_file, 2) == ["a man", "a woman with é"]


def test_what_does_not_count_is_reported_once_however_often_it_is_read(tmp_path, capsys):
    path = tmp_path / "people.txt"
    path.write_text("a man\n\na woman\na man\n \na man\n")
    for count in (0, 1, 2):
        load_prompts(path, count)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {path} holds 2 distinct prompts; not counted: 2 empty, 2 repeated"


def test_the_test_prompts_of_the_paper_are_named_without_a_file():
    prompts = load_prompts("parti-people")
    assert len(prompts) == 177 and prompts[:2] == ["Salvador Dalí", "a handpalm"]
    excerpt = load_prompts(f"{Path(__file__).parent / 'PartiPrompts.tsv'}:Prompt:Category=People")
    assert [prompt for prompt in prompts if prompt in excerpt] == excerpt
    assert base_config().prompts.test == "parti-people"


def test_toon_prompts_are_distinct_and_begin_alike():
    prompts = load_prompts("toon:validation", 20)
    assert len(set(prompts)) == 20
    assert load_prompts("toon:validation", 5) == prompts[:5]
    assert not set(prompts) & set(load_prompts("toon:train", 20))


@pytest.mark.parametrize(
    ("content", "count", "message"),
    [
        (None, 0, "does not exist"),
        (b"", 0, "is empty"),
        (b" \n\n", 0, "is empty"),
        (b"one\ntwo\ntwo\n", 3, "holds 2 distinct prompts, and count is 3: set count to at most 2, or to 0 for all"),
        (b"caf\xe9\n", 0, "is not UTF-8"),
    ],
)
def test_unusable_file_is_refused_in_one_line(tmp_path, content, count, message):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_prompts(path, count)
    assert "\n" not in str(error.value)


def test_a_setting_that_names_prompts_is_named_with_what_to_type(tmp_path):
    path = tmp_path / "people.txt"
    path.write_text("a man\n")
    with pytest.raises(
        UserError, match="^config.prompts.test: .*people.txt .*: set config.prompts.test_count to at most 1"
    ):
        load_prompts(path, 64, "config.prompts.test")
    with pytest.raises(
        UserError, match="^config.prompts.test: .*peple.txt' does not exist: did you mean .*/people.txt"
    ):
        load_prompts(tmp_path / "peple.txt", 64, "config.prompts.test")


@pytest.mark.parametrize(
    ("source", "count", "message"),
    [("toon:dev", 5, "toon:train, toon:validation"), ("toon:train", 0, "have no end"), ("", 0, "set config.prompts")],
)
def test_source_that_names_no_prompts_is_refused(source, count, message):
    with pytest.raises(UserError, match=message):
        load_prompts(source, count)


def test_long_prompt_is_warned_of_with_the_part_that_is_cut_off(toon_tokenizer, capsys):
    tokenizer = CLIPTokenizer.from_pretrained(str(toon_tokenizer))
    text = " ".join(["red"] * 76)
    tokens = len(tokenizer(text)["input_ids"])
    assert tokens == 78
    long = long_prompts(tokenizer, [f"{text} beard", " ".join(["red"] * 75)], 77)
    assert len(long) == 1
    warn_long_prompts(long)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: prompt 'red red")
    assert line.endswith("77 are used; cut off: 'red beard'")


def test_warnings_of_many_long_prompts_end_in_a_count(toon_tokenizer, capsys):
    tokenizer = CLIPTokenizer.from_pretrained(str(toon_tokenizer))
    # A tokenizer without this setting says that it cuts nothing.
    tokenizer.model_max_length = 10**30
    warn_long_prompts(long_prompts(tokenizer, [f"{i} " + "red " * 2000 for i in range(8)], 77))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and max(map(len, lines)) < 160
    assert "3 more prompts" in lines[-1]
