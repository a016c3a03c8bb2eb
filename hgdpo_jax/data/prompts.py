"""Prompts from a text file, from a column of a table, or from a plugin."""

import difflib
import functools
from collections.abc import Sequence

from etils import epath

from hgdpo_jax import plugins
from hgdpo_jax.data.hub_files import PREFIX, fetch_files
from hgdpo_jax.data.prompt_tables import column_texts, prompt_lines, split_source
from hgdpo_jax.errors import UserError, naming, warn
from hgdpo_jax.files import expanded, similar
from hgdpo_jax.texts import shortened
from hgdpo_jax.weights.clip_tokenizer import LongPrompt

_MOST_WARNINGS = 5
# Lists that ship with the package, one NAME.txt each.
_LISTS = {path.stem: path for path in (epath.Path(__file__).parent / "prompt_lists").glob("*.txt")}


def load_prompts(source: epath.PathLike, count: int = 0, setting: str = "") -> list[str]:
    """The first `count` distinct prompts of a source, or all if `count` is 0.

    The source is a UTF-8 text file with one prompt per line; a JSON file with an array of texts; a column of a JSON,
    JSON-lines, CSV, TSV or Parquet file, "FILE:COLUMN", or of some of its rows, "FILE:COLUMN:OTHER=VALUE", where FILE
    may be on the hub, "hf://datasets/OWNER/NAME/FILE"; a list that ships, "parti-people"; or a plugin's, "PLUGIN:NAME".
    Empty and repeated prompts in files are not counted, and are reported once. `setting`, such as
    "config.prompts.train", names the source in messages, and with "_count" behind it the count. Raises UserError if the
    source is missing, unreadable or too short.
    """
    with naming(setting):
        return _load(source, count, f"{setting}_count" if setting else "count")


def _load(source: epath.PathLike, count: int, count_name: str) -> list[str]:
    if not str(source):
        raise UserError(
            "no prompts are given: set config.prompts.train, config.prompts.validation and config.prompts.test"
        )
    plugin, name = plugins.plugin_of(str(source))
    if plugin.prompts:
        return plugin.prompts(name, count)
    texts = [text.strip() for text in _texts(str(source))]
    prompts = list(dict.fromkeys(filter(None, texts)))
    if not prompts:
        raise UserError(f"prompts file {source} is empty, expected one prompt per line")
    if len(prompts) < count:
        raise UserError(
            f"prompts file {source} holds {len(prompts)} distinct prompts, and {count_name} is {count}: set "
            f"{count_name} to at most {len(prompts)}, or to 0 for all"
        )
    empty = texts.count("")
    if len(prompts) < len(texts):
        _warn_once(
            f"{source} holds {len(prompts):,} distinct prompts; not counted: {empty:,} empty, "
            f"{len(texts) - empty - len(prompts):,} repeated"
        )
    return prompts[: count or None]


def _texts(source: str) -> list[str]:
    """All prompts of a file in their order, including empty and repeated ones."""
    if source in _LISTS:
        return prompt_lines(_LISTS[source])
    file, selection = split_source(source)
    paths = fetch_files(file) if file.startswith(PREFIX) else [expanded(file)]
    if missing := next((path for path in paths if not path.is_file()), None):
        named = [*_LISTS, *(f"{name}:..." for name, plugin in plugins.installed().items() if plugin.prompts)]
        near = similar(missing) or next(iter(difflib.get_close_matches(source, named, 1)), "")
        expected = "a text file with one prompt per line, FILE:COLUMN of a .json, .jsonl, .csv, .tsv or .parquet file"
        hint = f": did you mean {near}?" if near else f", expected {expected}, or one of {', '.join(named)}"
        if missing.is_dir():
            raise UserError(f"prompts file {file!r} is a folder, expected {expected} in it")
        raise UserError(f"prompts file {file!r} does not exist{hint}")
    if selection is None:
        return [text for path in paths for text in prompt_lines(path)]
    return [text for path in paths for text in column_texts(path, selection)]


def warn_long_prompts(long: Sequence[LongPrompt]) -> None:
    """Warns of prompts that are cut off; shows the lost part of the first few."""
    for text, tokens, used, lost in long[:_MOST_WARNINGS]:
        warn(f"prompt {shortened(text)!r} has {tokens} tokens, of which {used} are used; cut off: {shortened(lost)!r}")
    if len(long) > _MOST_WARNINGS:
        warn(f"{len(long) - _MOST_WARNINGS} more prompts are too long and are cut off")


# A stage reads its prompts several times: for its fingerprint, its plan and its work.
_warn_once = functools.cache(warn)
