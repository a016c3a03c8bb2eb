"""Makes preference pairs of the best and the worst image of each prompt's pool (HG-DPO, Eq. 6)."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from hgdpo_jax.artifacts import StageRun, write_json
from hgdpo_jax.data.pairs import write_pairs
from hgdpo_jax.data.pool import Block, DamagedPartError, Parts, Pool
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.pipelines.batching import map_batches, on_devices
from hgdpo_jax.pipelines.stable_diffusion import StableDiffusion
from hgdpo_jax.run_log import progress
from hgdpo_jax.stages.generate_pool import batch_of_block, load_base
from hgdpo_jax.stages.score_pool import complete_scores

INPUTS = ("score_pool",)


def settings(config) -> dict:
    return {
        "pool.size": config.pool.size,
        "pairs.loser_rank": config.pairs.loser_rank,
        "pairs.latents": config.pairs.latents,
    }


def check(config) -> None:
    """Raises UserError where a loser of that rank does not exist, or the kind of latents is unknown."""
    rank, size = config.pairs.loser_rank, config.pool.size
    if rank and not 2 <= rank <= size:
        raise UserError(f"pairs.loser_rank is {rank}, expected 2 to {size} (pool.size), or 0 for the lowest score")
    if config.pairs.latents not in ("encoded", "sampled"):
        raise UserError(f"pairs.latents is {config.pairs.latents!r}, expected 'encoded' or 'sampled'")


def plan(config) -> str:
    prompts = load_prompts(config.prompts.train, config.prompts.train_count)
    return f"at most {len(prompts):,} pairs"


def run(config, run: StageRun) -> None:
    run.input("score_pool")
    model = load_base(config)
    shape = model.latent_shape(config.pool.width, config.pool.height)
    while True:
        pool, scores, blocks = complete_scores(config, run)
        selection = _Selection(config, model, pool, scores)
        try:
            count = write_pairs(run.folder, selection.pairs(blocks), shape)
            break
        except DamagedPartError:
            continue
    write_json(run.folder / "statistics.json", selection.statistics())
    if equal := len(selection.spreads) - count:
        print(f"{equal:,} of {len(selection.spreads):,} prompts left out: winner and loser have the same score")


def winners_and_losers(
    scores: Float[np.ndarray, "n size"], loser_rank: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each row the place of the highest score and of the `loser_rank`-th highest; 0 stands for the lowest.

    Of equal scores the earlier image ranks higher.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    return order[:, 0], order[:, loser_rank - 1]


class _Selection:
    """Goes through the pool once, block by block, and remembers what it saw of the scores."""

    def __init__(self, config, model: StableDiffusion, pool: Pool, scores: Parts):
        self.config, self.model, self.pool, self.scores = config, model, pool, scores
        self.device_batch = batch_of_block(config.scoring.device_batch, config.pool.block)
        self.autoencoder = {"vae": model.parameters["vae"]}
        # As training, and so the pictures that were scored, sees them: through pixels of whole numbers.
        self.reencode = jax.jit(lambda parameters, x: model.encode(parameters, model.decode(parameters, x)))
        self.spreads: list[float] = []
        self.scores_seen: list[np.ndarray] = []
        self.chosen: list[tuple[int, int, float, float]] = []
        self.channel_means: list[np.ndarray] = []

    def pairs(self, blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
        """The pairs in the order of the prompts, without those whose winner and loser have the same score."""
        with progress(total=sum(len(b.prompts) for b in blocks), description="select_pairs", unit="prompt") as bar:
            for block in blocks:
                yield from self._pairs_of(block)
                bar.update(len(block.prompts))

    def _pairs_of(self, block: Block) -> Iterator[dict[str, Any]]:
        scores = self.scores.read_block(block, self.config.pool.size)
        winners, losers = winners_and_losers(scores, self.config.pairs.loser_rank)
        rows = np.arange(len(scores))
        self.scores_seen.append(scores)
        self.spreads += (scores[rows, winners] - scores[rows, losers]).tolist()
        rows = rows[scores[rows, winners] != scores[rows, losers]]
        if not len(rows):
            return
        pool = self.pool.latents.read_block(block, self.config.pool.size)
        latents = np.concatenate([pool[rows, winners[rows]], pool[rows, losers[rows]]])
        if self.config.pairs.latents == "encoded":
            latents = map_batches(
                lambda part: self.reencode(self.autoencoder, on_devices(latents[part])), len(latents), self.device_batch
            )
        winner_latents, loser_latents = np.split(latents.astype(np.float16), 2)
        self.channel_means.append(np.stack([winner_latents, loser_latents]).astype(np.float32).mean(axis=(2, 3)))
        for row, winner_latent, loser_latent in zip(rows, winner_latents, loser_latents, strict=True):
            winner, loser = winners[row], losers[row]
            yield {
                "prompt": block.prompts[row],
                "winner_latents": winner_latent,
                "loser_latents": loser_latent,
                "winner_score": scores[row, winner],
                "loser_score": scores[row, loser],
                "winner_index": int(winner),
                "loser_index": int(loser),
            }

    def statistics(self) -> dict[str, Any]:
        """What the scores and the pairs look like."""
        scores, spreads = np.concatenate(self.scores_seen).astype(np.float64), np.asarray(self.spreads)
        winner_mean, loser_mean = np.concatenate(self.channel_means, axis=1).mean(axis=1)
        return {
            "prompts": len(spreads),
            "pairs": int((spreads > 0).sum()),
            "score_mean": scores.mean(),
            # Of the images of one prompt: scores compare only within it.
            "score_standard_deviation": scores.std(axis=1).mean(),
            "spread_mean": spreads.mean(),
            "spread_quartiles": np.quantile(spreads, (0.25, 0.5, 0.75)).tolist(),
            # How far apart the pairs are in colour, which DPO alone would learn (Fig. 5b).
            "winner_channel_means": winner_mean.tolist(),
            "loser_channel_means": loser_mean.tolist(),
        }
