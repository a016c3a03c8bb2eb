"""Images of prompts from a folder that another program has written."""

import collections
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt8

from hgdpo_jax.data.image_folder import ImageFolder
from hgdpo_jax.data.pool import Block
from hgdpo_jax.errors import UserError
from hgdpo_jax.texts import shortened

_CAPTION_COLUMN = "text"


class FolderImages:
    """The images of an image folder by caption, which is their prompt: the n-th row with a prompt is its image n.

    All images are resized to one size. Measurements are written to `folder`.
    """

    def __init__(self, name: str, images: epath.PathLike, folder: epath.Path, width: int, height: int):
        self.name, self.folder = name, folder
        self._images = ImageFolder.open(images, _CAPTION_COLUMN)
        self._size = width, height
        self._rows: dict[str, list[int]] = collections.defaultdict(list)
        for row, caption in enumerate(self._images.captions):
            self._rows[caption].append(row)

    @property
    def fingerprint(self) -> str:
        """A hash of the images' names and prompts."""
        return self._images.fingerprint

    def complete(self, blocks: Sequence[Block], seeds: int) -> None:
        """Raises UserError if a prompt has fewer images than `seeds`."""
        for block in blocks:
            for prompt in block.prompts:
                if (found := len(self._rows.get(prompt, ()))) < seeds:
                    raise UserError(
                        f"{self._images.folder} has {found} images of {shortened(prompt)!r}, expected "
                        f"{seeds}: add rows with this prompt as {_CAPTION_COLUMN} to its table, or lower "
                        "config.evaluate.seeds"
                    )

    def images(
        self, block: Block, index: int
    ) -> tuple[UInt8[np.ndarray, "prompts height width 3"], Bool[np.ndarray, " prompts"]]:
        """One image per prompt of a block, and which are usable: all of them."""
        images = [self._images.image(self._rows[prompt][index], *self._size) for prompt in block.prompts]
        return np.stack(images), np.ones(len(images), bool)
