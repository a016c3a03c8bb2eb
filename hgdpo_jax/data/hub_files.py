"""Files of data sets on the Hugging Face hub, under the hub's own addresses."""

import fnmatch
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


def fetch_files(address: str) -> list[epath.Path]:
    """Files of a data set, `hf://datasets/OWNER/NAME[@REVISION]/FILE` with * in FILE for many, by name.

    They are fetched once, with progress, into the hub's cache; without a network those in the cache are used. A slash
    in a revision is written %2F. Raises UserError where there are none.
    """
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UserError(f"{address} names no file of the hub, expected hf://datasets/OWNER/NAME/FILE")
    name, pattern = match["name"], match["pattern"]
    revision = match["revision"].replace("%2F", "/") if match["revision"] else None

    def wanted(files: Sequence[str]) -> Iterator[str]:
        chosen = [file for file in files if fnmatch.fnmatchcase(file, pattern)]
        if not chosen:
            more = f" and {len(files) - _MOST_NAMES} more" if len(files) > _MOST_NAMES else ""
            shown = ", ".join(files[:_MOST_NAMES]) + more
            raise UserError(f"the data set {name} has no file {pattern}, expected one of {shown}")
        yield from chosen

    folder = fetch(name, revision, wanted, cached=[pattern], kind="dataset")
    return sorted(path for path in folder.glob(pattern) if path.is_file())
