"""A pool of images: the same number of latents for every prompt of a list, and their scores.

    FOLDER/<block>/image-007.safetensors                  latents of image 7 of every prompt in a block
    FOLDER/scores-<scorer>/<block>/image-007.safetensors  their scores
    FOLDER/kept-<filter>/<block>/image-007.safetensors    whether a filter keeps them

A block's name is a hash of its prompts, so that lists with the same beginning share parts. A part is complete or
absent. An image whose latents or score are not finite is unusable: its row is stored as it is, and later stages leave
the image out.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath
from jaxtyping import Shaped

from hgdpo_jax import hosts, leases
from hgdpo_jax.data.unusable import Unusable
from hgdpo_jax.errors import UserError, warn
from hgdpo_jax.files import names_in
from hgdpo_jax.run_log import Progress, progress
from hgdpo_jax.weights.tensor_files import load_tensors, save_tensors

_LISTERS = 16
# More threads than cores: with an object store, most of them wait.
_READERS = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


class DamagedPartError(Exception):
    """A part could not be read, and has been removed so that it is made again."""


@contextlib.contextmanager
def removed_if_damaged(path: epath.Path) -> Iterator[None]:
    """Removes a part, with a warning, if the code inside finds it damaged; raises DamagedPartError."""
    try:
        yield
    except (UserError, KeyError) as error:
        path.unlink(missing_ok=True)
        warn(f"{path} was damaged and is made again")
        raise DamagedPartError(str(path)) from error


@dataclasses.dataclass(frozen=True)
class Block:
    """Prompts whose images share files."""

    prompts: tuple[str, ...]

    @functools.cached_property
    def name(self) -> str:
        """Sixteen hexadecimal digits of a hash of the texts."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:16]


def blocks_of(prompts: Sequence[str], size: int) -> list[Block]:
    """Splits prompts into blocks of `size`; the last one may be smaller."""
    return [Block(tuple(prompts[start : start + size])) for start in range(0, len(prompts), size)]


def prompt_count(blocks: Iterable[Block]) -> int:
    """The number of prompts in all blocks."""
    return sum(len(block.prompts) for block in blocks)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Arrays of one kind: a file per block and image index, with a row per prompt of the block."""

    folder: epath.Path
    kind: str
    dtype: type

    def path(self, block: Block, index: int) -> epath.Path:
        """The file of a part."""
        return self.folder / block.name / f"image-{index:03d}.safetensors"

    def missing(self, blocks: Sequence[Block], size: int) -> list[tuple[Block, int]]:
        """Blocks and image indices below `size` whose part is missing."""
        # An object store is slow to list each of hundreds of folders.
        with concurrent.futures.ThreadPoolExecutor(_LISTERS) as executor:
            listed = list(executor.map(lambda block: names_in(self.folder / block.name), blocks))
        return [
            (block, index)
            for block, there in zip(blocks, listed, strict=True)
            for index in range(size)
            if self.path(block, index).name not in there
        ]

    def missing_for_all(self, blocks: Sequence[Block], size: int) -> list[tuple[Block, int]]:
        """The missing parts once every process has come here, the same list on all of them."""
        parts = list(itertools.product(blocks, range(size)))
        return hosts.chosen_by_first(parts, lambda: self.missing(blocks, size))

    def make_missing(
        self, blocks: Sequence[Block], size: int, make: Callable[[Sequence[tuple[Block, int]], int], object]
    ) -> bool:
        """Calls `make` on every process with its share of the missing parts, and of the total number of images.

        Returns False if none was missing. While another run makes parts of this kind, this one waits, and then uses
        them.
        """
        if not self.missing_for_all(blocks, size):
            return False
        with leases.held(self.folder, wait=True):
            if missing := self.missing_for_all(blocks, size):
                make(hosts.own(missing), size * prompt_count(blocks) // hosts.count())
        return True

    def stored(self, rows: Shaped[np.ndarray, "prompts ..."]) -> Shaped[np.ndarray, "prompts ..."]:
        """The rows in the stored type; a row that is not finite in it belongs to an unusable image."""
        with np.errstate(over="ignore"):
            return np.asarray(rows).astype(self.dtype)

    def write(self, block: Block, index: int, rows: Shaped[np.ndarray, "prompts ..."]) -> None:
        """Writes a part in the stored type."""
        save_tensors(self.path(block, index), {self.kind: self.stored(rows)})

    def read(self, block: Block, index: int) -> Shaped[np.ndarray, "prompts ..."]:
        """Reads a part; removes a truncated or altered one with a warning and raises DamagedPartError."""
        path = self.path(block, index)
        with removed_if_damaged(path):
            rows = load_tensors(path)[0][self.kind]
            if len(rows) != len(block.prompts):
                raise UserError(f"{path} holds {len(rows)} rows, expected {len(block.prompts)}: delete it")
        return rows

    def read_block(self, block: Block, size: int) -> Shaped[np.ndarray, "prompts size ..."]:
        """The first `size` images of every prompt of a block."""
        return np.stack([self.read(block, index) for index in range(size)], axis=1)


@dataclasses.dataclass(frozen=True)
class Pool:
    """The latents, scores and filters' decisions of the pool in `folder`."""

    folder: epath.Path

    @property
    def latents(self) -> Parts:
        """Scaled latents float16 `[prompts, h, w, c]`."""
        return Parts(self.folder, "latents", np.float16)

    def scores(self, fingerprint: str) -> Parts:
        """Scores float32 `[prompts]` by the scorer with this fingerprint."""
        return Parts(self.folder / f"scores-{fingerprint}", "scores", np.float32)

    def kept(self, fingerprint: str) -> Parts:
        """Whether the filter with this fingerprint keeps an image, bool `[prompts]`."""
        return Parts(self.folder / f"kept-{fingerprint}", "kept", np.bool_)


@contextlib.contextmanager
def write_behind() -> Iterator[Callable[..., None]]:
    """Yields a function that calls another one on a thread, while the caller continues; at most one call is queued.

    An exception of a call is raised by the next one, or at the end.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
        last: concurrent.futures.Future[Any] | None = None

        def submit(function: Callable[..., Any], *arguments: Any) -> None:
            nonlocal last
            if last:
                last.result()
            last = executor.submit(function, *arguments)

        yield submit
        if last:
            last.result()


@contextlib.contextmanager
def making(
    parts: Sequence[tuple[Block, int]], images: int, description: str, unusable_limit: float
) -> Iterator[tuple[Progress, Callable[..., None], Unusable]]:
    """Context for making missing parts: yields a progress bar, `write_behind`, and the count of unusable images.

    `images` is this process's share of all images, those of parts that exist included.
    """
    unusable, done = Unusable(unusable_limit, images), max(0, images - prompt_count(block for block, _ in parts))
    with (
        progress(total=images, initial=done, description=description, unit="image") as bar,
        write_behind() as write,
    ):
        yield bar, write, unusable
    unusable.warn()


def read_ahead(function: Callable[[Item], Result], items: Iterable[Item], ahead: int = _READERS) -> Iterator[Result]:
    """Yields `function` of each item in order; threads compute up to `ahead` items in advance.

    An exception is raised in its turn.
    """
    with concurrent.futures.ThreadPoolExecutor(ahead) as executor:
        pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        try:
            for item in items:
                pending.append(executor.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
