"""Statistics of a pool's scores and of the pairs chosen from it: `select_pairs` writes them, reports read them."""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.data.pair_parts import SelectedBlock
from hgdpo_jax.data.pool import Block
from hgdpo_jax.data.unusable import Unusable, image_of, pair_of
from hgdpo_jax.evaluation.rank_statistics import summarize_ranks

STATISTICS = "statistics.json"


def read_statistics(folder: epath.Path) -> dict[str, Any]:
    """What `select_pairs` wrote into its folder."""
    return json.loads((folder / STATISTICS).read_text())


class UnusablePairs:
    """Counts unusable images, and pairs that the VAE encodes to values that are not finite.

    `limit` is the share that is allowed, `encoded` what messages call the encoded latents.
    """

    def __init__(self, limit: float, prompts: int, pool_size: int, encoded: str):
        self.images = Unusable(limit, prompts * pool_size)
        self.pairs = Unusable(limit, prompts, "pairs")
        self._encoded = encoded

    def add(self, block: Block, selected: SelectedBlock) -> None:
        """Adds a block; raises UserError where there are too many."""
        for index, usable in enumerate(np.isfinite(selected.scores).T):
            self.images.add({"the scores of the pool": usable}, image_of(block.prompts, index))
        rows = np.sort(np.concatenate([selected.rows, selected.unencodable]))
        prompts = [block.prompts[row] for row in rows]
        self.pairs.add({self._encoded: np.isin(rows, selected.rows)}, pair_of(prompts))


class PoolStatistics:
    """Collects the statistics of a pool's scores and of the pairs chosen from it."""

    def __init__(self, loser_rank: int, unusable: UnusablePairs):
        self.loser_rank = loser_rank
        self.unusable = unusable
        self.too_few_usable = self.too_few_kept = 0
        self.margins: list[np.ndarray] = []
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(self, block: Block, selected: SelectedBlock) -> None:
        """Adds a block."""
        self.unusable.add(block, selected)
        too_few = np.isfinite(selected.scores).sum(axis=1) < max(self.loser_rank, 2)
        self.too_few_usable += int(too_few.sum())
        self.too_few_kept += int(((selected.winners < 0) & ~too_few).sum())
        rows = np.setdiff1d(np.flatnonzero(selected.winners >= 0), selected.unencodable)
        self.margins.append(
            selected.scores[rows, selected.winners[rows]] - selected.scores[rows, selected.losers[rows]]
        )
        # Copies: views would keep the whole part, mapped into memory.
        arrays = (selected.scores, selected.channel_means, selected.distances)
        self._parts.append(tuple(array.copy() for array in arrays))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        all_scores, channel_means, distances = zip(*self._parts, strict=True)
        # NaN where an image is unusable.
        scores = np.concatenate(all_scores).astype(np.float64)
        margins = np.concatenate(self.margins).astype(np.float64)
        scored = np.isfinite(scores).any(axis=1)
        ranks = summarize_ranks(np.concatenate(distances, axis=1))
        winner_mean, loser_mean = np.concatenate(channel_means, axis=1).mean(axis=1)
        return {
            "prompts": len(scores),
            "pairs": int((margins > 0).sum()),
            "unusable_images": self.unusable.images.count,
            "score_mean": np.nanmean(scores),
            # Of the images of one prompt: scores compare only within it.
            "score_standard_deviation": np.nanstd(scores[scored], axis=1).mean(),
            "margin_mean": margins.mean(),
            "margin_quartiles": np.quantile(margins, (0.25, 0.5, 0.75)).tolist(),
            # How far apart the pairs are in colour, which DPO alone would learn (Fig. 5b).
            "winner_channel_means": winner_mean.tolist(),
            "loser_channel_means": loser_mean.tolist(),
            "ranks": ranks and dataclasses.asdict(ranks),
        }
