"""What texts of others must be before anything is done with them, and how messages show them."""

import io
import re
import sys
from collections.abc import Sequence

from hgdpo_jax.errors import UserError

_SHOWN = 30


def shortened(text: str, most: int = 40) -> str:
    """A text for a message of one line: its beginning where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def some(names: Sequence[str], most: int = 3) -> str:
    """The first `most` names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def slug(text: str, joiner: str) -> str:
    """The letters and digits of a text as part of a name."""
    return re.sub(r"[\W_]+", joiner, text).strip(joiner)


def show_all_characters() -> None:
    """Makes print escape what the terminal's encoding has no character for, as it does on the error stream."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def require_whole_characters(text: str, where: str) -> None:
    """Raises UserError where a text holds half a character, a lone surrogate, which no file and no tokenizer takes.

    Programs that cut texts at a number of UTF-16 units leave halves of emoji in JSON. `where` names the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(error.start - _SHOWN, 0) : error.start]
        raise UserError(
            f"{where} holds half a character, or a byte that is not UTF-8, {text[error.start]!r}, after {before!r}: "
            "give the whole character in UTF-8, or take it out"
        ) from error
