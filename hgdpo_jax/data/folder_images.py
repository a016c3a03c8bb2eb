"""Images of prompts from a folder, where another program left them."""

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
    """The images of an image folder by prompt, its captions: of equal prompts the n-th row is image n.

    They are brought to one size. What is measured of them goes into `folder`.
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
        """Names the images by their names and prompts."""
        return self._images.fingerprint

    def complete(self, blocks: Sequence[Block], seeds: int) -> None:
        """Raises UserError where a prompt has fewer images than `seeds`."""
        for block in blocks:
            for prompt in block.prompts:
                if (found := len(self._rows.get(prompt, ()))) < seeds:
                    raise UserError(
                        f"{self._images.folder} has {found} images of {shortened(prompt)!r}, expected "
                        f"{seeds} (evaluate.seeds): rows of its table with this prompt as {_CAPTION_COLUMN}"
                    )

    def images(
        self, block: Block, index: int
    ) -> tuple[UInt8[np.ndarray, "prompts height width 3"], Bool[np.ndarray, " prompts"]]:
        """One image of each prompt of a block, and that all of them are usable."""
        images = [self._images.image(self._rows[prompt][index], *self._size) for prompt in block.prompts]
        return np.stack(images), np.ones(len(images), bool)
