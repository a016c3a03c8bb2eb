"""What training needs of captioned images: latents and text states, in files of consecutive rows.

    FOLDER/000128.safetensors    moments and text_states of rows 128 to 255

A file is whole or not there. A row is read without the rest of its file, so memory does not grow with the data set.
"""

import functools
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Float16

from hgdpo_jax.errors import UserError
from hgdpo_jax.files import names_in
from hgdpo_jax.weights.tensor_files import map_tensors, save_tensors

# A file of 39 MB at 704x1024.
ROWS_PER_FILE = 128
_MAPPED_FILES = 64


class EncodedImages:
    """Rows by their number: dicts of `moments` `[h, w, 2 c]` and `text_states` `[t, d]`, float16.

    Moments are the scaled mean of the latents' posterior and, behind it, its standard deviation.
    """

    def __init__(self, folder: epath.PathLike, images: int):
        self._folder, self._images = epath.Path(folder), images
        # Rows come in any order, a file has many, and each that is mapped holds one of the process's descriptors.
        # Of the folder, not of this object, which would be a cycle and keep the files open.
        self._file = functools.lru_cache(_MAPPED_FILES)(functools.partial(_map_file, self._folder))

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, row: int) -> dict[str, Float16[np.ndarray, "..."]]:
        start = row - row % ROWS_PER_FILE
        return {name: np.array(rows[row - start]) for name, rows in self._file(start).items()}

    def files(self) -> list[range]:
        """Rows of each file."""
        starts = range(0, self._images, ROWS_PER_FILE)
        return [range(start, min(start + ROWS_PER_FILE, self._images)) for start in starts]

    def missing(self) -> list[range]:
        """Rows of the files that are not there."""
        there = names_in(self._folder)
        return [rows for rows in self.files() if self._path(rows.start).name not in there]

    def write(
        self, rows: range, moments: Float[np.ndarray, "n h w c2"], text_states: Float[np.ndarray, "n t d"]
    ) -> None:
        """Writes the file of these rows; raises UserError where a value is not finite in float16."""
        stored: dict[str, Any] = {}
        for name, values in (("moments", moments), ("text_states", text_states)):
            with np.errstate(over="ignore"):
                stored[name] = values.astype(np.float16)
            if not np.isfinite(stored[name]).all():
                bad = int(np.argmin(np.isfinite(stored[name]).reshape(len(values), -1).all(axis=1)))
                raise UserError(
                    f"{name} of image {rows[bad]} are not finite: check the weights, or give --config.dtype=float32"
                )
        save_tensors(self._path(rows.start), stored)

    def _path(self, start: int) -> epath.Path:
        return _path(self._folder, start)


def _path(folder: epath.Path, start: int) -> epath.Path:
    return folder / f"{start:06d}.safetensors"


def _map_file(folder: epath.Path, start: int) -> dict[str, Any]:
    return map_tensors(_path(folder, start))
