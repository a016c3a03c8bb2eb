"""Functions of the user's own, named in a config as "module:function"."""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from hgdpo_jax.errors import UserError


# An edited file changes nothing until its module is reloaded, which gives it new functions.
@functools.cache
def _imported_code(module: ModuleType, _function: int) -> str:
    return inspect.getsource(module)


def load_function(source: str, setting: str) -> tuple[Callable[..., Any], str]:
    """The callable that "module:function" names, and a fingerprint that changes with its file.

    A callable that reads files says itself what decides its results, in its attribute `fingerprint`. `setting` names in
    messages where it was given. Raises UserError where there is no such callable, or its file has changed since this
    process used it first.
    """
    module_name, _, name = source.partition(":")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, name, None)
        code, now = _imported_code(module, id(function)), inspect.getsource(module)
    # The user's own code may raise anything.
    except Exception as error:
        raise UserError(
            f"{setting} is {source!r}, whose module cannot be imported ({error}): expected module:function, with "
            "module.py in the folder where you start the program or installed"
        ) from error
    if now != code:
        raise UserError(f"{setting} is {source!r}, whose file has changed since it was imported: start Python again")
    if not callable(function):
        raise UserError(f"{setting} is {source!r}, but {module_name} has no function {name!r}: correct the name")
    read = getattr(function, "fingerprint", "")
    return function, hashlib.sha256(f"{source}\0{code}\0{read}".encode()).hexdigest()[:16]
