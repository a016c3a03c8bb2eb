"""Files on disks and in object stores (gs://), which neither rename nor append, and which many readers cannot open."""

import contextlib
import difflib
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import fsspec
from etils import epath

from hgdpo_jax.errors import UserError

PARTIAL_SUFFIX = ".partial"
_CACHE = epath.Path("~/.cache/hgdpo_jax/objects")
_BLOCK = 1 << 22
# From the root, in an object store, or with ".." in it. Folders are copied between systems: also with backslashes.
_OUTSIDE = re.compile(r"([A-Za-z]:)?[/\\]|.*://|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL)

# Orbax and other processes write past fsspec, and a listing that it remembers would hide what they wrote.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store."""
    return "://" in str(path)


def leads_out(name: str) -> bool:
    """Whether a name, which a file of others gives for one beside it, leads out of its folder."""
    return bool(_OUTSIDE.match(name))


def expanded(path: epath.PathLike) -> epath.Path:
    """The path, where ~ or ~NAME at its start is the home folder; as it is where there is no such user."""
    return epath.Path(os.path.expanduser(path))


def require_utf8_name(path: epath.PathLike) -> None:
    """Raises UserError where this locale and the libraries in C++ and Rust would each name a file in another way."""
    encoding = sys.getfilesystemencoding()
    place = os.path.abspath(expanded(path))
    if not is_remote(path) and not place.isascii() and encoding.lower().replace("-", "") != "utf8":
        raise UserError(
            f"this locale writes the name {place} in {encoding}, and the libraries that write checkpoints in UTF-8: "
            "set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
        )


def require_store(path: epath.PathLike) -> None:
    """Raises UserError where `path` lies in an object store that this installation cannot reach."""
    try:
        epath.Path(path).exists()
    except ImportError as error:
        raise UserError(f"{path} cannot be opened ({error}); for gs:// paths: pip install 'hgdpo_jax[gcs]'") from error


def names_in(folder: epath.Path) -> set[str]:
    """Names of what lies in a folder; none where it does not exist."""
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def similar(path: epath.PathLike) -> str:
    """The existing file or folder whose name is most like that of one which does not exist; "" if there is none."""
    path = expanded(path)
    if is_remote(path):
        return ""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        names = sorted(names_in(missing.parent))
    except OSError:
        return ""
    begun = [name for name in names if missing.name and name.startswith(f"{missing.name}.")]
    near = begun or difflib.get_close_matches(missing.name, names, 1)
    if not near:
        return ""
    found = missing.parent / near[0]
    whole = found / path.relative_to(missing)
    return str(whole if whole.exists() else found)


@contextlib.contextmanager
def written_whole(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """A file to write into: `path` has its content after the block, and nothing of it where the block is left early.

    Makes the folder. On a disk the file is written beside its place and renamed; an object is there once its upload
    has ended.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        content = io.BytesIO()
        yield content
        # In one piece: written piece by piece, what an error cuts short would be uploaded as far as it came.
        path.write_bytes(content.getbuffer())
        return
    beside = path.parent / f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}"
    try:
        opened: IO[bytes] = beside.open("wb")
        with opened as file:
            yield file
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a file, so that it is there whole or not at all; makes its folder."""
    with written_whole(path) as file:
        file.write(content)


def write_text(path: epath.PathLike, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: epath.PathLike, value: Any, sort_keys: bool = True) -> None:
    """`write_bytes` of `json_text`."""
    write_text(path, json_text(value, sort_keys))


def json_text(value: Any, sort_keys: bool = True) -> str:
    """Plain values and arrays as JSON, where NaN and infinity, which it does not have, are null.

    With sorted keys equal values give equal bytes.
    """
    return json.dumps(_finite(value), indent=2, sort_keys=sort_keys, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    # An array.
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def local_copy(path: epath.Path) -> Iterator[str]:
    """A local copy of `path` where it lies in an object store: readers map files into memory.

    What was mapped stays readable when the copy is gone.
    """
    if not is_remote(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = epath.Path(folder) / path.name
        path.copy(copy)
        yield str(copy)


def checksum(path: epath.PathLike) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def cached_place(path: epath.Path) -> epath.Path:
    """The path itself, or, of one in an object store, the place of its copy in ~/.cache/hgdpo_jax/objects."""
    return _CACHE.expanduser() / str(path).replace("://", "/") if is_remote(path) else path


def cached_copy(path: epath.Path) -> epath.Path:
    """The file itself, or, of one in an object store, a copy at its `cached_place` for all who read it again.

    It is fetched where it is not there yet, or the object was written anew.
    """
    if is_remote(path) and not _is_copied(path):
        _fetch(path)
    return cached_place(path)


def checked_copy(path: epath.Path, expected: str) -> bool:
    """Makes a `cached_copy`; returns whether the file has the expected checksum, which is taken while it is copied.

    A copy that was there before is checked too, and fetched anew if it is damaged.
    """
    if (not is_remote(path) or _is_copied(path)) and checksum(cached_place(path)) == expected:
        return True
    return is_remote(path) and _fetch(path) == expected


def _is_copied(path: epath.Path) -> bool:
    """Whether there is a copy of an object as it is now."""
    copy = cached_place(path)
    there, here = path.stat(), copy.stat() if copy.is_file() else None
    return here is not None and (here.length, here.mtime) == (there.length, there.mtime)


def _fetch(path: epath.Path) -> str:
    """Copies an object; returns its checksum."""
    copy, there, digest = cached_place(path), path.stat(), hashlib.sha256()
    with path.open("rb") as source, written_whole(copy) as target:
        while block := source.read(_BLOCK):
            digest.update(block)
            target.write(block)
    os.utime(copy, (there.mtime, there.mtime))
    return digest.hexdigest()


def cached_folder(folder: epath.Path, names: Sequence[str]) -> epath.Path:
    """The folder itself, or, of one in an object store, a local one with cached copies of those of `names` it has."""
    if not is_remote(folder):
        return folder
    copies = [cached_copy(folder / name) for name in names if (folder / name).is_file()]
    return copies[0].parent
