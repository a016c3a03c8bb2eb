"""Sizes of a model, read off the shapes of its tensors."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from hgdpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes of the tensors of a file; `where` names the file in messages, `expected` what it should hold."""

    tensors: Mapping[str, np.ndarray]
    where: str
    expected: str

    def of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; raises UserError where there is none of this name."""
        if name not in self.tensors:
            raise UserError(f"{self.where} has no {name}: expected {self.expected}")
        return self.tensors[name].shape

    def tower(self, blocks: str, first_layer: str, head: int) -> tuple[int, int, int, int]:
        """Width, intermediate width, number of blocks and of attention heads of a transformer.

        `blocks` begins the names of its blocks, `first_layer` ends those of the MLPs' first weights, and `head` is the
        width of a head, which no shape shows. Raises UserError where the width is not a multiple of it.
        """
        intermediate, width = self.of(f"{blocks}0.{first_layer}")
        if width % head:
            raise UserError(
                f"{self.where} has {blocks}* of width {width}, expected a multiple of {head}, as in {self.expected}"
            )
        numbers = {name.removeprefix(blocks).split(".")[0] for name in self.tensors if name.startswith(blocks)}
        return width, intermediate, len(numbers), width // head

    def clip_tower(self, blocks: str, first_layer: str, head: int) -> dict[str, int]:
        """The sizes of `tower` under the names of a CLIP's config.json."""
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        return dict(zip(names, self.tower(blocks, first_layer, head), strict=True))

    def image_size(self, patch_size: int, positions: int) -> int:
        """Side of the square image that a vision transformer takes; one of its positions is the class token's."""
        return patch_size * math.isqrt(positions - 1)
