"""Errors that a person can mend."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in what was given; its text is one line: what was given, what was expected, what to type next."""


def first_line(error: BaseException) -> str:
    """What an error says, without what follows in lines of its own."""
    # str() of a KeyError is the quoted form of its argument; the first argument of an OSError is a number.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


@contextlib.contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Raises UserError, `what` with the reason, for any error within it: where a library reads what others wrote."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({type(error).__name__}: {first_line(error)}): fetch or make it again") from error
