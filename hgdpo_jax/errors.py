"""Errors that a person can mend."""


class UserError(Exception):
    """A mistake in what was given; its text is one line: what was given, what was expected, what to type next."""


def first_line(error: BaseException) -> str:
    """What an error says, without what follows in lines of its own."""
    # str() of a KeyError is the quoted form of its argument; the first argument of an OSError is a number.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
