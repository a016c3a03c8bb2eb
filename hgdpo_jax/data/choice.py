"""Which images of a prompt become winner and loser (HG-DPO, Eq. 6)."""

import numpy as np
from jaxtyping import Bool, Float, Int


def winners_and_losers(
    scores: Float[np.ndarray, "n size"], loser_rank: int, kept: Bool[np.ndarray, "n size"] | None = None
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Indices in each row of the highest score and of the `loser_rank`-th highest; rank 0 is the lowest.

    Only images that are `kept` have a rank; of equal scores the earlier image ranks higher. Both indices are -1 if no
    image has the loser's rank, or only one image is kept.
    """
    kept = np.ones(scores.shape, bool) if kept is None else kept
    order = np.argsort(np.where(kept, -scores, np.inf), axis=1, kind="stable")
    left = kept.sum(axis=1)
    losers = order[np.arange(len(order)), (loser_rank or left) - 1]
    complete = left >= max(loser_rank, 2)
    return np.where(complete, order[:, 0], -1), np.where(complete, losers, -1)
