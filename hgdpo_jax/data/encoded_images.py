"""Latents and conditioning of captioned images for training, in files of consecutive rows.

    FOLDER/000128.safetensors      moments and conditioning of rows 128 to 255
    FOLDER/000128.unusable.json    those of them with values that are not finite, if there are any

A file is complete or absent. A row is read without the rest of its file, so memory does not grow with the data set.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from hgdpo_jax.batching import finite_rows
from hgdpo_jax.files import names_in, write_json
from hgdpo_jax.weights.tensor_files import map_tensors, save_tensors

# A file of 39 MB at 704x1024.
ROWS_PER_FILE = 128
_MAPPED_FILES = 64
_UNUSABLE = ".unusable.json"


class EncodedImages:
    """Usable rows by their number: dicts of `moments` `[h, w, 2 c]` and `conditioning`, float16.

    Conditioning is an array or nested dicts of arrays. Moments are the scaled mean of the latents' posterior, then its
    standard deviation. There are `images` rows, of which those in `unusable` are left out.
    """

    def __init__(self, folder: epath.PathLike, images: int, unusable: Sequence[int] = ()):
        self._folder, self._images = epath.Path(folder), images
        self._usable = np.setdiff1d(np.arange(images), unusable)
        # Rows are read in any order, and each mapped file holds one of the process's descriptors.
        self._map = functools.lru_cache(_MAPPED_FILES)(map_tensors)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = int(self._usable[number])
        start = row - row % ROWS_PER_FILE
        return _nested({name: np.array(rows[row - start]) for name, rows in self._map(self._path(start)).items()})

    def files(self) -> list[range]:
        """Rows of each file."""
        rows = range(self._images)
        return [rows[start : start + ROWS_PER_FILE] for start in rows[::ROWS_PER_FILE]]

    def missing(self) -> list[range]:
        """Rows of the missing files."""
        present = names_in(self._folder)
        return [rows for rows in self.files() if self._path(rows.start).name not in present]

    def write(self, rows: range, moments: Float[np.ndarray, "n h w c2"], conditioning: Any) -> None:
        """Writes the file of these rows, after the list of those that are unusable: not finite in float16."""
        stored = half({"moments": moments, "conditioning": conditioning})
        usable = finite_rows(stored)
        if not usable.all():
            write_json(self._path(rows.start).with_suffix(_UNUSABLE), [rows[row] for row in np.flatnonzero(~usable)])
        named = jax.tree_util.tree_leaves_with_path(stored)
        arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): array for path, array in named}
        save_tensors(self._path(rows.start), arrays)

    def unusable(self) -> list[int]:
        """The unusable rows of the files that exist."""
        names = sorted(name for name in names_in(self._folder) if name.endswith(_UNUSABLE))
        return [row for name in names for row in json.loads((self._folder / name).read_text())]

    def _path(self, start: int) -> epath.Path:
        return self._folder / f"{start:06d}.safetensors"


def half(values: Any) -> Any:
    """Arrays in the stored type, float16, where a large value is infinite."""
    with np.errstate(over="ignore"):
        return jax.tree.map(lambda array: array.astype(np.float16), values)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of arrays that are named by their keys, joined by slashes."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *outer, name = path.split("/")
        node = tree
        for key in outer:
            node = node.setdefault(key, {})
        node[name] = value
    return tree


def read_encoded(folder: epath.Path) -> tuple[EncodedImages, list[str]]:
    """The rows that `encode_images` wrote into its folder, and a few of the captions."""
    values = json.loads((folder / "images.json").read_text())
    return EncodedImages(folder / "rows", values["images"], values.get("unusable", ())), values["captions"]
