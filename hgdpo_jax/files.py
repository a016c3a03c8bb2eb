"""Files on disks and in object stores (gs://), which neither rename nor append, and which many readers cannot open."""

import contextlib
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import IO

import fsspec
from etils import epath

from hgdpo_jax.errors import UserError

PARTIAL_SUFFIX = ".partial"
_CACHE = epath.Path("~/.cache/hgdpo_jax/objects")
_BLOCK = 1 << 22

# Orbax and other processes write past fsspec, and a listing that it remembers would hide what they wrote.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store."""
    return "://" in str(path)


def require_store(path: epath.PathLike) -> None:
    """Raises UserError where `path` lies in an object store that this installation cannot reach."""
    try:
        epath.Path(path).exists()
    except ImportError as error:
        raise UserError(f"{path} cannot be opened ({error}); for gs:// paths: pip install -e '.[gcs]'") from error


def names_in(folder: epath.Path) -> set[str]:
    """Names of what lies in a folder; none where it does not exist."""
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()


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


def cached_copy(path: epath.Path) -> epath.Path:
    """The file itself, or, of one in an object store, a copy in ~/.cache/hgdpo_jax/objects for all who read it again.

    It is fetched where it is not there yet, or the object was written anew.
    """
    if not is_remote(path):
        return path
    copy = _CACHE.expanduser() / str(path).replace("://", "/")
    there, here = path.stat(), copy.stat() if copy.is_file() else None
    if here is None or (here.length, here.mtime) != (there.length, there.mtime):
        with path.open("rb") as source, written_whole(copy) as target:
            shutil.copyfileobj(source, target, _BLOCK)
        os.utime(copy, (there.mtime, there.mtime))
    return copy


def cached_folder(folder: epath.Path, names: Sequence[str]) -> epath.Path:
    """The folder itself, or, of one in an object store, a local one with cached copies of those of `names` it has."""
    if not is_remote(folder):
        return folder
    copies = [cached_copy(folder / name) for name in names if (folder / name).is_file()]
    return copies[0].parent
