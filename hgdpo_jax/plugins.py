"""Plugins: packages that add prompts, weights, scorers and stages to the names that a config may use.

A package names its own in its metadata, and it is found once the package is installed:

    [project.entry-points."hgdpo_jax.plugins"]
    studio = "studio.plugin:PLUGIN"
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from etils import epath

from hgdpo_jax.errors import UserError

_GROUP = "hgdpo_jax.plugins"
# Ships with this package; metadata of an installation from a clone may be older than the clone.
_PACKAGED = EntryPoint("toon", "hgdpo_jax.toon.plugin:PLUGIN", _GROUP)


@dataclasses.dataclass(frozen=True)
class Plugin:
    """What a package adds; all of it may be left out. Its module is imported at each start: keep it light."""

    # For the source "studio:faces" it gets "faces" and a count, 0 for all, and returns that many distinct prompts.
    prompts: Callable[[str, int], list[str]] | None = None
    # Folders and files of weights by name.
    weights: Mapping[str, epath.PathLike] = dataclasses.field(default_factory=dict)
    # "module:function" of scorers by name, as hgdpo_jax/scorers/sources.py describes them.
    scorers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Settings of its stages by name, each a dataclass: further sections of configs.
    sections: Mapping[str, type] = dataclasses.field(default_factory=dict)
    # Package whose modules are stages, as hgdpo_jax/stages/__init__.py describes them.
    stages: str = ""
    # Whose work the images show that its weights draw, or that are drawn of its prompts: shown in their reports.
    attribution: str = ""


@functools.cache
def installed() -> dict[str, Plugin]:
    """All plugins by name; raises UserError where one cannot be loaded."""
    return {entry.name: _load(entry) for entry in (_PACKAGED, *entry_points(group=_GROUP))}


def plugin_of(prompts: str) -> tuple[Plugin, str]:
    """The plugin whose prompts a source names, an empty one for a file, and what follows its name and the colon."""
    name, colon, rest = prompts.partition(":")
    return installed().get(name, Plugin()) if colon else Plugin(), rest


def attribution(weights: Sequence[str], prompts: Sequence[str]) -> str:
    """Whose work images show that these weights draw of these prompts, in the words of the plugins that add either."""
    places = [os.path.realpath(os.path.expanduser(source)) for source in weights if source]

    def concerned(name: str, plugin: Plugin) -> bool:
        folders = [os.path.realpath(place) for place in plugin.weights.values()]
        return (
            any(source.startswith(f"{name}:") for source in prompts)
            or any(source in plugin.weights for source in weights)
            or any(os.path.commonpath([place, folder]) == folder for place in places for folder in folders)
        )

    return " ".join(plugin.attribution for name, plugin in installed().items() if concerned(name, plugin)).strip()


def named(what: str, taken: Collection[str] = ()) -> dict[str, Any]:
    """What all plugins name in their field `what`; raises UserError where a name has two meanings or is `taken`."""
    found: dict[str, Any] = {}
    for plugin, entries in ((name, getattr(plugin, what)) for name, plugin in installed().items()):
        if twice := sorted(set(entries) & {*found, *taken}):
            raise UserError(f"the plugin {plugin} adds {twice[0]!r} to {what}, but that name is taken: uninstall it")
        found |= entries
    return found


def _load(entry: EntryPoint) -> Plugin:
    try:
        plugin = entry.load()
    # Another package's code may raise anything.
    except Exception as error:
        raise UserError(
            f"the plugin {entry.name} ({entry.value}) cannot be loaded ({error}): mend or uninstall its package"
        ) from error
    if not isinstance(plugin, Plugin):
        raise UserError(f"the plugin {entry.name} ({entry.value}) is a {type(plugin).__name__}, expected a Plugin")
    return plugin
