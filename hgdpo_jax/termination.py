"""How a program ends: SIGTERM, by which schedulers and pre-emptible machines ask for it, and its last step."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from hgdpo_jax.errors import UserError, first_line, outside_trouble
from hgdpo_jax.texts import show_all_characters


class Terminated(BaseException):
    """SIGTERM came. As KeyboardInterrupt, it is no error that anyone should handle but main."""


def leave(status: int) -> NoReturn:
    """Ends the program with an exit status; one of several processes that failed does not wait for the others."""
    jax = sys.modules.get("jax")
    if status and jax and jax.distributed.is_initialized():
        # JAX's own way out is a meeting of all processes, and they wait for this one elsewhere.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def exit_status(run: Callable[[], None], kept: str = "") -> int:
    """Calls `run`; tells what went wrong in one line, and returns a command's exit status.

    `kept` says what becomes of the work after a stop from outside.
    """
    show_all_characters()
    try:
        # An exception, so that what was started within it ends too.
        with raised_on_sigterm():
            run()
        return 0
    except KeyboardInterrupt:
        message, status = f"interrupted{kept}", 130
    except Terminated:
        message, status = f"terminated{kept}", 143
    except Exception as error:
        if os.environ.get("HGDPO_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        if isinstance(error, UserError):
            message, status = str(error), 2
        elif trouble := outside_trouble(error):
            message, status = f"{trouble}{kept}", 2
        else:
            message, status = f"unexpected {type(error).__name__}: {first_line(error)}; HGDPO_DEBUG=1 shows where", 1
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


@contextlib.contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises Terminated where the program is."""

    def handle(*_):
        raise Terminated

    with _handler(handle):
        yield


@contextlib.contextmanager
def kept_for_later() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM does nothing; the function that it gives says whether it came."""
    came = threading.Event()
    with _handler(lambda *_: came.set()):
        yield came.is_set


@contextlib.contextmanager
def _handler(handle: Callable[..., None]) -> Iterator[None]:
    # Only there does Python let handlers be set; elsewhere the caller has its own ways to end a program.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
