"""Files of data sets on the Hugging Face hub, under the hub's own addresses."""

import fnmatch
import functools
import re
from collections.abc import Iterator, Sequence

from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.hub import fetch

_PREFIX = "hf://"
_ADDRESS = re.compile(r"hf://datasets/(?P<name>[\w-][\w.-]*/[\w.-]+?)(?:@(?P<revision>[^/]+))?/(?P<pattern>.+)")
_MOST_NAMES = 6


def is_hub_address(file: str) -> bool:
    """Whether a file is named by an address of the hub."""
    return file.startswith(_PREFIX)


@functools.cache
def fetch_files(address: str) -> list[epath.Path]:
    """Files of a data set, `hf://datasets/OWNER/NAME[@REVISION]/FILE` with * in FILE for many, by name.

    They are fetched once, with progress, into the hub's cache; without a network those in the cache are used. A slash
    in a revision is written %2F. A program asks the hub once. Raises UserError where there are none.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or "**" in address:
        raise UserError(
            f"{address} names no file of the hub, expected hf://datasets/OWNER/NAME/FILE, with * for parts of names"
        )
    name, pattern = match["name"], match["pattern"]
    revision = match["revision"].replace("%2F", "/") if match["revision"] else None

    def wanted(files: Sequence[str]) -> Iterator[str]:
        # As a search of folders does, by which a cache is read: * stands for no slash.
        chosen = [file for file in files if _matches(file.split("/"), pattern.split("/"))]
        if not chosen:
            more = f" and {len(files) - _MOST_NAMES} more" if len(files) > _MOST_NAMES else ""
            shown = ", ".join(files[:_MOST_NAMES]) + more
            raise UserError(f"the data set {name} has no file {pattern}, expected one of {shown}")
        yield from chosen

    folder = fetch(name, revision, wanted, cached=[pattern], kind="dataset")
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _matches(words: Sequence[str], patterns: Sequence[str]) -> bool:
    return len(words) == len(patterns) and all(map(fnmatch.fnmatchcase, words, patterns))
