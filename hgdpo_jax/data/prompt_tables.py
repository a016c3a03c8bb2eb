"""Tables of texts: JSON, JSON lines, CSV, TSV or Parquet."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from hgdpo_jax.errors import UserError, first_line
from hgdpo_jax.files import local_copy
from hgdpo_jax.texts import require_whole_characters, shortened, some

_SOURCE = re.compile(r"(.+?\.(?:jsonl?|csv|tsv|parquet))(?::(.*))?", re.IGNORECASE)
_MOST_NAMES = 12
# The column of texts in a JSON array.
_UNNAMED = ""
# str.splitlines also splits at form feeds, U+0085, U+2028 and others, which texts from web pages hold.
_LINE_END = re.compile(r"\r\n|\n|\r")

# A row's place, such as "line 3", and its values by column.
Row = tuple[str, dict[str, Any]]


def split_source(source: str) -> tuple[str, str | None]:
    """Splits a source into its file and its selection of columns and rows, None if the file is not a table.

    Only a colon after a table's suffix separates them, so drive letters and "gs://" are kept.
    """
    match = _SOURCE.fullmatch(source)
    return (match[1], match[2] or "") if match else (source, None)


def column_texts(path: epath.Path, selection: str) -> list[str]:
    """Texts of a column, of all rows ("COLUMN") or of those with a value in another column ("COLUMN:OTHER=VALUE").

    A missing value is an empty text. The selection of a JSON array of texts is empty. Raises UserError if the content
    or the selection has another form.
    """
    column, _, condition = selection.partition(":")
    rows = table_rows(path, {column, condition.partition("=")[0]} if condition else {column})
    if not rows:
        raise UserError(f"prompts file {path} is empty, expected columns with names and one prompt per row")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    if selection and columns == [_UNNAMED]:
        raise UserError(f"prompts file {path} is an array of texts, without columns: leave :{selection} out")
    if column not in columns:
        problem = f"has no column {column!r}" if column else "is a table"
        raise UserError(f"prompts file {path} {problem}, expected {path}:COLUMN with one of {_listed(columns)}")
    chosen = _matching(path, rows, columns, condition) if condition else rows
    return [text_of(path, row, column) for row in chosen]


def table_rows(path: epath.Path, names: set[str]) -> list[Row]:
    """The rows of a table in the format that its suffix names, with the columns `names` and perhaps others.

    If one of them is missing, the first row names all columns. Raises UserError if the file has another format.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        return list(_parquet_rows(path, names))
    read = {".json": _json_array_rows, ".jsonl": _json_rows}.get(kind, _separated_rows)
    return list(read(path, read_text(path)))


def text_of(path: epath.Path, row: Row, column: str) -> str:
    """A row's text in a column, empty if it has none; raises UserError if the value is not a text."""
    place, values = row
    text = values.get(column)
    if not isinstance(text, str | None):
        raise UserError(f"{place} of {path} has {shortened(_as_text(text))} as {column!r}, expected a text")
    require_whole_characters(text or "", f"{column!r} in {place} of {path}")
    return text or ""


def read_text(path: epath.Path) -> str:
    """Reads a UTF-8 file, with or without a byte order mark; raises UserError if it is not UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    # English text in UTF-16 without a byte order mark is valid UTF-8, with a zero between letters.
    if "\0" in text:
        raise UserError(f"{path} is not UTF-8 (a zero after {text.index(chr(0))} characters): save it as UTF-8")
    return text


def prompt_lines(path: epath.Path) -> list[str]:
    """Lines of a text file; raises UserError if it holds JSON, whose lines are not prompts."""
    content = read_text(path)
    if _is_json(content) or _is_json(content.lstrip().partition("\n")[0]):
        raise UserError(
            f"prompts file {path} holds JSON, expected one prompt per line: let its name end in .json or .jsonl"
        )
    return lines_of(content)


def lines_of(content: str) -> list[str]:
    """Lines of a text, without the \\n, \\r\\n or \\r that ends each; no other character ends a line."""
    lines = _LINE_END.split(content)
    return lines if lines[-1] else lines[:-1]


def _parquet_rows(path: epath.Path, names: set[str]) -> Iterator[Row]:
    """Rows with the columns `names`; if one is missing, a single row with all columns, for the message."""
    # Slow to import, and rarely needed.
    import pyarrow
    from pyarrow import parquet

    try:
        with local_copy(path) as local, parquet.ParquetFile(local) as file:
            present = file.schema_arrow.names
            if not names <= set(present):
                yield "row 1", dict.fromkeys(present)
                return
            table = file.read(columns=[name for name in present if name in names])
    # Pages of a damaged file that cannot be decompressed raise OSError.
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}), expected a Parquet file: write it again"
        ) from error
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError as error:
        number = next(row for row in range(table.num_rows) if not _is_readable(table.slice(row, 1))) + 1
        raise UserError(f"row {number} of {path} is not UTF-8 ({error.reason}): write it as UTF-8") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _is_json(content: str) -> bool:
    """Whether a text is a JSON array or object; a prompt may begin with a bracket too."""
    try:
        return content.lstrip()[:1] in ("[", "{") and bool(json.loads(content))
    except (ValueError, RecursionError):
        return False


def _is_readable(table: Any) -> bool:
    try:
        table.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


def _json_rows(path: epath.Path, content: str) -> Iterator[Row]:
    for line, text in enumerate(lines_of(content), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"line {line} of {path} is not JSON ({error}): correct the line") from error
        if not isinstance(row, dict):
            raise UserError(f'line {line} of {path} is no JSON object, expected {{"COLUMN": "a text"}}')
        yield f"line {line}", row


def _json_array_rows(path: epath.Path, content: str) -> Iterable[Row]:
    """Rows of a JSON array of objects, or of texts, which get the column `_UNNAMED`."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith("["):
            raise UserError(f"{path} is not JSON ({error}): correct the file") from error
        # Many data sets keep JSON lines in files named .json.
        return _json_rows(path, content)
    items = values if isinstance(values, list) else [values]
    # A missing text counts as an empty one, as in columns.
    kind: Any = str | None if isinstance(next(iter(items), None), str) else dict
    for number, item in enumerate(items, start=1):
        if not isinstance(item, kind):
            raise UserError(
                f"item {number} of {path} is {shortened(_as_text(item))}, expected an array of texts, or of objects "
                '{"COLUMN": "a text"}'
            )
    return [(f"item {n}", item if kind is dict else {_UNNAMED: item}) for n, item in enumerate(items, start=1)]


def _separated_rows(path: epath.Path, content: str) -> Iterator[Row]:
    lines = io.StringIO(content, newline="")
    # In TSV a quotation mark is an ordinary character: PartiPrompts has prompts that begin with one.
    tabs = path.suffix.lower() == ".tsv"
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    try:
        names = next(reader, [])
        for fields in filter(None, reader):
            if len(fields) > len(names):
                advice = "take the tabs out of texts" if tabs else "put texts with commas into double quotes"
                raise UserError(
                    f"line {reader.line_num} of {path} has {len(fields)} fields, expected {len(names)} "
                    f"as in the first line: {advice}"
                )
            yield f"line {reader.line_num}", dict(zip(names, fields, strict=False))
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {path} cannot be read ({error}): correct the line") from error


def _matching(path: epath.Path, rows: list[Row], columns: Iterable[str], condition: str) -> list[Row]:
    """Rows that meet a condition "COLUMN=VALUE"."""
    name, equals, value = condition.partition("=")
    if not equals or name not in columns:
        raise UserError(
            f"{condition!r} selects no rows of prompts file {path}, "
            f"expected COLUMN=VALUE with one of {_listed(columns)}"
        )
    values = [_as_text(row.get(name, "")) for _, row in rows]
    if value not in values:
        raise UserError(
            f"no row of prompts file {path} has {condition}, expected one of {_listed(dict.fromkeys(values))}"
        )
    return [row for row, found in zip(rows, values, strict=True) if found == value]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _listed(names: Iterable[str]) -> str:
    return some([shortened(name) for name in names], _MOST_NAMES)
