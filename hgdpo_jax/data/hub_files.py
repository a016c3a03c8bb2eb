"""Files of data sets on the Hugging Face hub, under the hub's own addresses."""

import functools
import re
from collections.abc import Iterator, Sequence

from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import some
from hgdpo_jax.weights.hub import fetch

PREFIX = "hf://"
_ADDRESS = re.compile(r"hf://datasets/(?P<name>[\w-][\w.-]*/[\w.-]+?)(?:@(?P<revision>[^/]+))?/(?P<pattern>.+)")
_MOST_NAMES = 6


@functools.cache
def fetch_files(address: str) -> list[epath.Path]:
    """Files of a data set, `hf://datasets/OWNER/NAME[@REVISION]/FILE` with * in FILE for several, sorted by name.

    Downloads them once into the hub's cache, with progress; without a network, uses those in the cache. A slash in a
    revision is written %2F. Raises UserError if there are none.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or "**" in address:
        raise UserError(
            f"{address} names no file of the hub, expected hf://datasets/OWNER/NAME/FILE, with * for parts of names"
        )
    name, pattern = match["name"], match["pattern"]
    revision = match["revision"].replace("%2F", "/") if match["revision"] else None

    def wanted(files: Sequence[str]) -> Iterator[str]:
        # Like `glob`, which searches the cache: the whole path, and * matches no slash.
        chosen = [file for file in files if epath.Path("/", file).match(f"/{pattern}")]
        if not chosen:
            raise UserError(f"the data set {name} has no file {pattern}, expected one of {some(files, _MOST_NAMES)}")
        yield from chosen

    folder = fetch(name, revision, wanted, cached=[pattern], kind="dataset")
    return sorted(path for path in folder.glob(pattern) if path.is_file())
