"""Which images of a prompt become winner and loser (HG-DPO, Eq. 6)."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from hgdpo_jax.data.pool import Block


def winners_and_losers(
    scores: Float[np.ndarray, "n size"], loser_rank: int, kept: Bool[np.ndarray, "n size"] | None = None
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each row the place of the highest score and of the `loser_rank`-th highest; 0 stands for the lowest.

    Only images that are `kept` have a rank; of equal scores the earlier image ranks higher. Both places are -1 where no
    image has the loser's rank, or only one is left.
    """
    kept = np.ones(scores.shape, bool) if kept is None else kept
    order = np.argsort(np.where(kept, -scores, np.inf), axis=1, kind="stable")
    left = kept.sum(axis=1)
    losers = order[np.arange(len(order)), (loser_rank or left) - 1]
    complete = left >= max(loser_rank, 2)
    return np.where(complete, order[:, 0], -1), np.where(complete, losers, -1)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Image indices of winner and loser of each prompt of a block, -1 where there are none; NaN scores are unusable."""

    block: Block
    scores: Float[np.ndarray, "prompts size"]
    winners: Int[np.ndarray, " prompts"]
    losers: Int[np.ndarray, " prompts"]

    @functools.cached_property
    def rows(self) -> Int[np.ndarray, " pairs"]:
        """The prompts that give a pair: winner and loser have different scores."""
        rows = np.flatnonzero(self.winners >= 0)
        return rows[self.scores[rows, self.winners[rows]] > self.scores[rows, self.losers[rows]]]

    def chosen(self, index: int) -> Bool[np.ndarray, "2 pairs"]:
        """Whether an image is the winner, and the loser, of each pair."""
        return np.stack([self.winners, self.losers])[:, self.rows] == index
