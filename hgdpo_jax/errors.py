"""Errors that a person can mend."""


class UserError(Exception):
    """A mistake in what was given; its text is one line: what was given, what was expected, what to type next."""
