"""Errors that a person can mend, and warnings."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator

# What stops a run from outside, and may be mended while it waits.
_DISK_TROUBLES = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "no space left on the disk",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission",
    errno.ENOTDIR: "a file is where a folder is expected",
    errno.EISDIR: "a folder is where a file is expected",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many open files, as ulimit -n counts them",
}


class UserError(Exception):
    """A mistake in what was given; its text is one line: what was given, what was expected, what to type next."""


def warn(message: str) -> None:
    """Prints a warning of one line on the error stream."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


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


@contextlib.contextmanager
def naming(setting: str) -> Iterator[None]:
    """Begins the text of a UserError within it with the setting that is at fault, unless it begins with one."""
    try:
        yield
    except UserError as error:
        if not setting or str(error).startswith("config."):
            raise
        raise UserError(f"{setting}: {error}") from error


def outside_trouble(error: BaseException) -> str:
    """What of disk or memory stopped the run, and where, read off an error or its causes; empty where neither did.

    The checkpoint and record writers are C++ and pass on only the system's words.
    """
    cause: BaseException | None = error
    while cause is not None:
        for number, words in _DISK_TROUBLES.items():
            if isinstance(cause, OSError) and cause.errno == number:
                return f"{words} ({cause.filename or cause.strerror})"
            if os.strerror(number) in str(cause):
                return f"{words} (no file can be written)"
        # GPUs are out of memory, TPUs ran out of it.
        if isinstance(cause, MemoryError) or re.search("RESOURCE_EXHAUSTED.*ut of memory", str(cause)):
            return f"out of memory ({first_line(cause)}): lower pool., scoring., train. or finetune.device_batch"
        cause = cause.__cause__ or cause.__context__
    return ""
