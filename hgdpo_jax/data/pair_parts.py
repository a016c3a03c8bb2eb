"""The selection from each block of a pool, kept until the files of the pairs are written.

    FOLDER/<block>.safetensors

A part is complete or absent, so a selection that was stopped resumes with the missing blocks.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float16, Float32, Int32

from hgdpo_jax import hosts
from hgdpo_jax.data.pool import Block, removed_if_damaged
from hgdpo_jax.files import names_in
from hgdpo_jax.weights.tensor_files import load_tensors, save_tensors


@dataclasses.dataclass(frozen=True)
class SelectedBlock:
    """Winners and losers of the prompts of a block."""

    # NaN for unusable images.
    scores: Float32[np.ndarray, "prompts size"]
    # Image indices, -1 if a prompt has too few images to choose from.
    winners: Int32[np.ndarray, " prompts"]
    losers: Int32[np.ndarray, " prompts"]
    # The prompts that give a pair, and those that would if the VAE encoded both images to finite values.
    rows: Int32[np.ndarray, " pairs"]
    unencodable: Int32[np.ndarray, " lost"]
    winner_latents: Float16[np.ndarray, "pairs h w c"]
    loser_latents: Float16[np.ndarray, "pairs h w c"]
    # Of winners and losers.
    channel_means: Float32[np.ndarray, "2 pairs c"]
    # `rank_distances` of the prompts whose images are all usable.
    distances: Float32[np.ndarray, "2 whole others"]


@dataclasses.dataclass(frozen=True)
class PairParts:
    """The selected blocks in a folder."""

    folder: epath.Path

    def path(self, block: Block) -> epath.Path:
        """The file of a part."""
        return self.folder / f"{block.name}.safetensors"

    def missing_for_all(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks without a part once every process has come here, the same list on all of them."""

        def missing() -> list[Block]:
            present = names_in(self.folder)
            return [block for block in blocks if self.path(block).name not in present]

        return hosts.chosen_by_first(blocks, missing)

    def write(self, block: Block, selected: SelectedBlock) -> None:
        """Writes a part."""
        save_tensors(self.path(block), vars(selected))

    def read(self, block: Block) -> SelectedBlock:
        """Reads a part; removes a truncated or altered one with a warning and raises DamagedPartError."""
        path = self.path(block)
        with removed_if_damaged(path):
            arrays = load_tensors(path)[0]
            return SelectedBlock(**{field.name: arrays[field.name] for field in dataclasses.fields(SelectedBlock)})

    def remove(self) -> None:
        """Removes all parts."""
        self.folder.rmtree(missing_ok=True)
