"""A pool of images: for every prompt of a list the same number of latents, and scorers' opinions of them.

    FOLDER/<block>/image-007.safetensors                  latents of image 7 of every prompt of a block
    FOLDER/scores-<scorer>/<block>/image-007.safetensors  their scores
    FOLDER/kept-<filter>/<block>/image-007.safetensors    whether a filter keeps them

A block is named by its prompts' texts, so that lists which begin alike share parts. A part is whole or not there.
An image whose latents or score are not finite is unusable: such rows are kept as they are, and later stages leave the
image out.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath
from jaxtyping import Shaped

from hgdpo_jax import hosts, leases
from hgdpo_jax.errors import UserError
from hgdpo_jax.files import names_in, write_json
from hgdpo_jax.weights.tensor_files import load_tensors, save_tensors

_LISTERS = 16
# More than a machine has cores: in an object store most of them wait.
_READERS = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


class DamagedPartError(Exception):
    """A part that could not be read; it has been removed, to be made again."""


@contextlib.contextmanager
def removed_if_damaged(path: epath.Path) -> Iterator[None]:
    """Removes a part with a warning where reading it, inside, finds it damaged; raises DamagedPartError."""
    try:
        yield
    except (UserError, KeyError) as error:
        path.unlink(missing_ok=True)
        print(f"warning: {path} was damaged and is made again", file=sys.stderr, flush=True)
        raise DamagedPartError(str(path)) from error


@dataclasses.dataclass(frozen=True)
class Block:
    """Prompts whose images share files."""

    prompts: tuple[str, ...]

    @functools.cached_property
    def name(self) -> str:
        """Sixteen hexadecimal digits, from the texts."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:16]


def blocks_of(prompts: Sequence[str], size: int) -> list[Block]:
    """Consecutive prompts, `size` to a block; the last block may be smaller."""
    return [Block(tuple(prompts[start : start + size])) for start in range(0, len(prompts), size)]


@dataclasses.dataclass(frozen=True)
class Parts:
    """One kind of array, a file for each block and image index, with a row for each prompt of the block."""

    folder: epath.Path
    kind: str
    dtype: type

    def path(self, block: Block, index: int) -> epath.Path:
        """Place of a part."""
        return self.folder / block.name / f"image-{index:03d}.safetensors"

    def missing(self, blocks: Sequence[Block], size: int) -> list[tuple[Block, int]]:
        """Blocks and image indices below `size` that are not there."""
        # An object store takes its time for each of hundreds of folders.
        with concurrent.futures.ThreadPoolExecutor(_LISTERS) as executor:
            listed = list(executor.map(lambda block: names_in(self.folder / block.name), blocks))
        return [
            (block, index)
            for block, there in zip(blocks, listed, strict=True)
            for index in range(size)
            if self.path(block, index).name not in there
        ]

    def missing_for_all(self, blocks: Sequence[Block], size: int) -> list[tuple[Block, int]]:
        """What is missing when every process has come here, the same list on all of them."""
        hosts.wait()
        numbers = {block: number for number, block in enumerate(blocks)}
        absent = self.missing(blocks, size) if hosts.is_first() else []
        listed = hosts.from_first([(numbers[block], index) for block, index in absent])
        return [(blocks[number], index) for number, index in listed]

    def make_missing(
        self, blocks: Sequence[Block], size: int, make: Callable[[Sequence[tuple[Block, int]]], object]
    ) -> bool:
        """Calls `make` on every process with its share of what is missing; returns False if nothing was missing.

        No other run makes parts of this kind meanwhile: if one does, this one waits, and uses what the other has made.
        """
        if not self.missing_for_all(blocks, size):
            return False
        with leases.held(self.folder, wait=True):
            if missing := self.missing_for_all(blocks, size):
                make(hosts.own(missing))
        return True

    def stored(self, rows: Shaped[np.ndarray, "prompts ..."]) -> Shaped[np.ndarray, "prompts ..."]:
        """The rows in the stored type; a row that is not finite in it stands for an image that cannot be used."""
        with np.errstate(over="ignore"):
            return np.asarray(rows).astype(self.dtype)

    def write(self, block: Block, index: int, rows: Shaped[np.ndarray, "prompts ..."]) -> None:
        """Writes a part in the stored type."""
        save_tensors(self.path(block, index), {self.kind: self.stored(rows)})

    def read(self, block: Block, index: int) -> Shaped[np.ndarray, "prompts ..."]:
        """A part; one that is cut short or altered is removed with a warning, and DamagedPartError raised."""
        path = self.path(block, index)
        with removed_if_damaged(path):
            rows = load_tensors(path)[0][self.kind]
            if len(rows) != len(block.prompts):
                raise UserError(f"{path} holds {len(rows)} rows, expected {len(block.prompts)}")
        return rows

    def read_block(self, block: Block, size: int) -> Shaped[np.ndarray, "prompts size ..."]:
        """The first `size` images of every prompt of a block."""
        return np.stack([self.read(block, index) for index in range(size)], axis=1)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Latents, scores and filters' verdicts of a pool that lies in `folder`."""

    folder: epath.Path

    @property
    def latents(self) -> Parts:
        """Scaled latents float16 `[prompts, h, w, c]`."""
        return Parts(self.folder, "latents", np.float16)

    def note_rate(self, images_per_second: float) -> None:
        """Notes how fast this host draws, for those who ask from outside how long it will take."""
        name = f"host-{hosts.index()}-of-{hosts.count()}.json"
        write_json(self.folder / "rates" / name, {"images_per_second": images_per_second, "time": time.time()})

    def rates(self) -> list[float]:
        """Images a second of each of the hosts that drew last; [] where no rate is known."""
        folder = self.folder / "rates"
        files = list(folder.glob("host-*.json")) if folder.is_dir() else []
        noted = {path.name: json.loads(path.read_text()) for path in files}
        if not noted:
            return []
        last = max(noted, key=lambda name: noted[name]["time"])
        count = last.rpartition("-of-")[2]
        return [values["images_per_second"] for name, values in noted.items() if name.endswith(f"-of-{count}")]

    def scores(self, fingerprint: str) -> Parts:
        """Scores float32 `[prompts]` by the scorer with this fingerprint."""
        return Parts(self.folder / f"scores-{fingerprint}", "scores", np.float32)

    def kept(self, fingerprint: str) -> Parts:
        """Whether the filter with this fingerprint keeps an image, bool `[prompts]`."""
        return Parts(self.folder / f"kept-{fingerprint}", "kept", np.bool_)


@contextlib.contextmanager
def write_behind() -> Iterator[Callable[..., None]]:
    """A function that calls another one on a thread of its own, while its caller computes on; one call waits at most.

    What a call raises is raised by the next one, or at the end.
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


def read_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each item, in their order, called ahead on threads; what a call raises is raised in its turn."""
    with concurrent.futures.ThreadPoolExecutor(_READERS) as executor:
        pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        try:
            for item in items:
                pending.append(executor.submit(function, item))
                if len(pending) > _READERS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
