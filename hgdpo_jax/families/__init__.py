"""Families of text-to-image models: one folder each, or a class of the user."""

import importlib
import importlib.util
from typing import Any

from hgdpo_jax.errors import UserError
from hgdpo_jax.user_functions import load_function

# The name of a setting, for messages.
_SETTING = "config.weights.family"


def find(name: str) -> Any:
    """The class, a `families.model.Model`, of the family in the folder `name`, or that "module:Class" names.

    Raises UserError where there is none.
    """
    if ":" in name:
        return load_function(name, _SETTING)[0]
    folder = f"{__name__}.{name}"
    spec = importlib.util.find_spec(folder) if name.isidentifier() else None
    if spec is None or spec.submodule_search_locations is None:
        raise UserError(f'{_SETTING} is {name!r}, expected a folder of hgdpo_jax/families or "module:Class"')
    return importlib.import_module(folder).FAMILY


def fingerprint(name: str) -> str:
    """Identifies a family; a class of the user also counts by the content of its file."""
    return f"{name} {load_function(name, _SETTING)[1]}" if ":" in name else name
