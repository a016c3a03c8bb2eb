import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from hgdpo_jax.data.prompt_tables import split_source
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.main import main

# An excerpt: see NOTICE.md beside it.
PARTI = Path(__file__).parent / "PartiPrompts.tsv"

CAPTIONS = {
    "captions.json": '[{"caption": "a man, smiling", "faces": 1},\n'
    ' {"caption": " a\u2028woman ", "faces": 2}, {"faces": 2}]',
    # What data sets call .json often holds JSON lines.
    "lines.json": '{"caption": "a man, smiling", "faces": 1}\n{"caption": " a\u2028woman ", "faces": 2}\n',
    "captions.jsonl": '{"caption": "a man, smiling", "faces": 1}\n\n{"caption": " a\u2028woman ", "faces": 2}\n'
    '{"faces": 2}\n',
    "captions.csv": 'caption,faces\r\n"a man, smiling",1\r\n\r\n" a\u2028woman ",2\r\n,2\r\n',
    "captions.TSV": "caption\tfaces\na man, smiling\t1\n a\u2028woman \t2\n\t2\n",
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_column_of_a_table_is_a_source(tmp_path, name):
    (tmp_path / name).write_bytes(CAPTIONS[name].encode())
    assert load_prompts(f"{tmp_path / name}:caption") == ["a man, smiling", "a\u2028woman"]
    assert load_prompts(f"{tmp_path / name}:caption:faces=2") == ["a\u2028woman"]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_texts_is_a_source(tmp_path, indent):
    prompts = ["a man, smiling", 'a woman in "red"', "a\nchild"]
    (tmp_path / "a.JSON").write_text(json.dumps([*prompts, " ", prompts[0]], indent=indent))
    assert load_prompts(tmp_path / "a.JSON") == prompts


def test_a_prompt_may_begin_with_a_bracket(tmp_path):
    (tmp_path / "a.txt").write_text("[portrait] a man\n{woman|man} in red\n")
    assert load_prompts(tmp_path / "a.txt") == ["[portrait] a man", "{woman|man} in red"]


def test_people_are_one_category_of_the_parti_prompts():
    people = load_prompts(f"{PARTI}:Prompt:Category=People")
    assert people[:2] == ["Salvador Dalí", "a man"] and len(people) == 7
    assert load_prompts(f"{PARTI}:Prompt:Category=People", 2) == people[:2]
    assert len(load_prompts(f"{PARTI}:Prompt")) == 10


def test_rows_of_a_table_can_be_named_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    test = f"--config.prompts.test={PARTI}:Prompt:Category=People"
    options = ["--plan", f"--workdir={tmp_path}", "--config.prompts.test_count=0"]
    assert main(["--config=configs/toon_smoke.py", *options, test]) == 0
    assert "7 prompts x" in capsys.readouterr().out


def test_quotation_marks_in_a_tsv_are_part_of_the_prompt():
    (prompt,) = load_prompts(f"{PARTI}:Prompt:Challenge=Writing & Symbols")
    assert prompt.startswith('"G I G G L E" painted')


def test_text_of_a_parquet_file_that_is_not_utf_8_is_refused_in_one_line(tmp_path):
    lengths, bytes_of = np.array([0, 5, 13], np.int32), b"a mana wom\xed\xa0\xbd"
    texts = pyarrow.StringArray.from_buffers(2, pyarrow.py_buffer(lengths), pyarrow.py_buffer(bytes_of))
    parquet.write_table(pyarrow.table({"caption": texts}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 2 of .* is not UTF-8"):
        load_prompts(f"{tmp_path}/a.parquet:caption")


@pytest.mark.parametrize(
    "option", ["config.prompts.train", "config.pool.negative_prompt", "config.sample.prompts", "workdir"]
)
def test_half_a_character_on_the_command_line_is_refused_before_anything_is_planned(
    tmp_path, monkeypatch, capsys, option
):
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    value = "('a man', 'a smile \ud83d')" if option == "config.sample.prompts" else "smile\ud83d"
    arguments = ["--config=configs/toon_smoke.py", f"--workdir={tmp_path}", "--plan", f"--{option}={value}"]
    assert main(arguments) == 2
    assert f"{option} holds half a character" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("gs://bucket/people.jsonl:caption", ("gs://bucket/people.jsonl", "caption")),
        ("C:\\people.csv:caption:faces=1", ("C:\\people.csv", "caption:faces=1")),
        ("a.csv/b.tsv:c.csv", ("a.csv/b.tsv", "c.csv")),
        ("people.csv", ("people.csv", "")),
        ("C:\\people.txt", ("C:\\people.txt", None)),
        ("a.csv/people", ("a.csv/people", None)),
    ],
)
def test_only_a_colon_behind_a_tables_ending_separates(source, parts):
    assert split_source(source) == parts


@pytest.mark.parametrize(
    ("name", "content", "selection", "message"),
    [
        ("a.tsv", "caption\tfaces\na man\t1\n", "", "is a table, expected .*a.tsv:COLUMN with one of caption, faces"),
        ("a.csv", "caption,faces\na man,1\n", ":Prompt", "has no column 'Prompt', .* one of caption, faces"),
        ("a.jsonl", '{"text": "a man"}\n{"note": ""}', ":caption", "has no column 'caption', .* one of text, note"),
        ("a.csv", ",".join("abcdefghijklmno") + "\n" + "," * 14, "", "k, l and 3 more"),
        ("a.csv", "caption,faces\na man,1\n", ":caption:1", "'1' selects no rows .* COLUMN=VALUE with one of"),
        ("a.csv", "caption,faces\na man,1\n", ":caption:ages=1", "'ages=1' selects no rows .* caption, faces"),
        ("a.csv", "caption,faces\na man,1\n", ":caption:faces=2", "no row .* has faces=2, expected one of 1"),
        ("a.csv", "caption,faces\na man, tall,1\n", ":caption", "line 2 .* has 3 fields, expected 2 .* double quotes"),
        ("a.csv", 'caption\n"a man\na woman\n', ":caption", "line 3 .* cannot be read .unexpected end of data"),
        ("a.tsv", "caption\na man\ttall\n", ":caption", "line 2 .* has 2 fields, expected 1 .* tabs"),
        (
            "a.jsonl",
            '{"caption": "a man"}\n{"caption": 5}\n',
            ":caption",
            "line 2 .* has 5 as 'caption', expected a text",
        ),
        ("a.jsonl", '{"caption": "a man"}\na woman\n', ":caption", "line 2 .* is not JSON"),
        ("a.jsonl", '"a man"\n', ":caption", "line 1 .* is no JSON object"),
        ("a.jsonl", '{"caption": "a smile \\ud83d"}', ":caption", "'caption' in line 1 of .* holds half a character"),
        ("a.tsv", "caption\0\n\0", ":caption", "is not UTF-8 .*: save it as UTF-8"),
        ("a.jsonl", "\n", ":caption", "is empty"),
        ("a.json", "", "", "is empty"),
        ("a.json", "[]", ":caption", "is empty"),
        ("a.json", '["a man"]', ":caption", "is an array of texts, without columns: leave :caption out"),
        ("a.json", '["a man", 5]', "", "item 2 of .* is 5, expected an array of texts"),
        ("a.json", "[5]", "", "item 1 of .* is 5, expected an array of texts, or of objects"),
        ("a.json", '[{"caption": "a man"}]', "", "is a table, expected .*a.json:COLUMN with one of caption"),
        ("a.json", '{"images": [], "annotations": []}', ":caption", "has no column .* one of images, annotations"),
        ("a.json", '["a man",\n"a woman"', "", "is not JSON .Expecting"),
        ("a.txt", '[\n"a man",\n"a woman"\n]', "", "holds JSON, .*: let its name end in .json or .jsonl"),
        ("a.ndjson", '{"caption": "a man"}\n{"caption": "a woman"}', "", "holds JSON"),
        ("a.csv", "caption\n", ":caption", "is empty"),
        ("a.csv", 'caption\n" "\n', ":caption", "is empty"),
        ("a.csv", None, ":caption", "a.csv' does not exist, .* FILE:COLUMN"),
    ],
)
def test_table_that_does_not_hold_what_is_asked_for_is_refused_in_one_line(tmp_path, name, content, selection, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_prompts(f"{tmp_path / name}{selection}")
    assert "\n" not in str(error.value)
