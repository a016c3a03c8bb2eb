"""Functions of the user's own, named in a config as "module:function"."""

import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from hgdpo_jax.errors import UserError


def load_function(source: str, setting: str) -> tuple[Callable[..., Any], str]:
    """The callable that "module:function" names, and a fingerprint that changes with its file.

    A callable that reads files says itself what decides its results, in its attribute `fingerprint`. `setting` names in
    messages where it was given. Raises UserError where there is no such callable.
    """
    module_name, _, name = source.partition(":")
    try:
        module = importlib.import_module(module_name)
        code = inspect.getsource(module)
    # The user's own code may raise anything.
    except Exception as error:
        raise UserError(
            f"{setting} is {source!r}, whose module cannot be imported ({error}): expected module:function, with "
            "module.py in the folder where you start the program or installed"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{setting} is {source!r}, but {module_name} has no function {name!r}")
    read = getattr(function, "fingerprint", "")
    return function, hashlib.sha256(f"{source}\0{code}\0{read}".encode()).hexdigest()[:16]
