"""Makes preference pairs of the best and the worst image of each prompt's pool (HG-DPO, Eq. 6)."""

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, write_json
from hgdpo_jax.data.image_filter import apply_filter, filter_pool, load_filter
from hgdpo_jax.data.pairs import write_pairs
from hgdpo_jax.data.pool import Block, DamagedPartError, Parts, Pool
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.data.unusable import Unusable, image_of, pair_of
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.rank_statistics import RankStatistics
from hgdpo_jax.pipelines.batching import finite_rows, map_batches, on_devices
from hgdpo_jax.pipelines.stable_diffusion import StableDiffusion
from hgdpo_jax.run_log import progress
from hgdpo_jax.stages.generate_pool import batch_of_block, load_autoencoder
from hgdpo_jax.stages.score_pool import complete_scores

INPUTS = ("score_pool",)
EVERY_HOST = True


def settings(config) -> dict:
    return {
        "pool.size": config.pool.size,
        "pairs.loser_rank": config.pairs.loser_rank,
        "pairs.latents": config.pairs.latents,
    } | _filter_settings(config)


def _filter_settings(config) -> dict:
    # A filter counts by its file, not by its name alone.
    if not config.pairs.filter:
        return {}
    return {"pairs.filter": f"{config.pairs.filter} {load_filter(config.pairs.filter)[1]}"}


def check(config) -> None:
    """Raises UserError where a loser of that rank does not exist, the kind of latents is unknown, or a filter fails."""
    rank, size = config.pairs.loser_rank, config.pool.size
    if rank and not 2 <= rank <= size:
        raise UserError(f"pairs.loser_rank is {rank}, expected 2 to {size} (pool.size), or 0 for the lowest score")
    if config.pairs.latents not in ("encoded", "sampled"):
        raise UserError(f"pairs.latents is {config.pairs.latents!r}, expected 'encoded' or 'sampled'")
    if config.pairs.filter:
        black = np.zeros((2, config.pool.height, config.pool.width, 3), np.uint8)
        apply_filter(load_filter(config.pairs.filter)[0], black, ["a black picture"] * 2)


def plan(config, run: StageRun) -> str:
    prompts = load_prompts(config.prompts.train, config.prompts.train_count)
    return f"at most {len(prompts):,} pairs"


def run(config, run: StageRun) -> None:
    run.input("score_pool")
    model = load_autoencoder(config)
    written = False
    while not written:
        pool, scores, blocks = complete_scores(config, run)
        kept = _kept(config, pool)
        if kept and kept.make_missing(blocks, config.pool.size, functools.partial(_filter, config, model, pool, kept)):
            continue
        # Encoding two images of each prompt, where all hosts have drawn twenty, is worth no sharing.
        if hosts.is_first():
            with contextlib.suppress(DamagedPartError):
                prompts = sum(len(block.prompts) for block in blocks)
                _write(config, run, _Selection(config, model, pool, scores, kept, prompts), blocks)
                written = True
        written = hosts.from_first(written)


def _write(config, run: StageRun, selection: "_Selection", blocks: Sequence[Block]) -> None:
    shape = selection.model.latent_shape(config.pool.width, config.pool.height)
    count = write_pairs(run.folder, selection.pairs(blocks), shape)
    write_json(run.folder / "statistics.json", selection.statistics())
    prompts = sum(len(block.prompts) for block in blocks)
    for left_out, reason in (
        (selection.too_few_usable, "too few of their images are usable"),
        (selection.too_few_kept, "the filter keeps too few of their images"),
        (selection.unusable_pairs.count, "the VAE encodes winner or loser to values that are not finite"),
        (len(selection.spreads) - count, "winner and loser have the same score"),
    ):
        if left_out:
            print(f"{left_out:,} of {prompts:,} prompts left out: {reason}")
    selection.unusable.warn()


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


def read_statistics(folder: epath.Path) -> dict[str, Any]:
    """What this stage wrote of scores and pairs."""
    return json.loads((folder / "statistics.json").read_text())


def make_reencode(model: StableDiffusion):
    """One compiled function `(parameters, latents) -> latents` that decodes and encodes; NaN stays NaN."""

    @jax.jit
    def reencode(parameters, latents):
        # As training, and so the pictures that were scored, sees them: through pixels of whole numbers.
        pixels, decoded = model.decode_checked(parameters, latents)
        # Pixels cannot say that they are none.
        return jnp.where(decoded[:, None, None, None], model.encode(parameters, pixels), jnp.nan)

    return reencode


def _kept(config, pool: Pool) -> Parts | None:
    """What the filter says of the pool; None without a filter."""
    return pool.kept(load_filter(config.pairs.filter)[1]) if config.pairs.filter else None


def _filter(config, model: StableDiffusion, pool: Pool, kept: Parts, parts: Sequence[tuple[Block, int]]) -> None:
    device_batch = batch_of_block(config.scoring.device_batch, config.pool.block)
    image_filter = load_filter(config.pairs.filter)[0]
    filter_pool(image_filter, lambda x: model.decode_latents_checked(x, device_batch)[0], pool, kept, parts)


class _Selection:
    """Goes through the pool once, block by block, and remembers what it saw of the scores."""

    def __init__(self, config, model: StableDiffusion, pool: Pool, scores: Parts, kept: Parts | None, prompts: int):
        self.config, self.model, self.pool, self.scores, self.kept = config, model, pool, scores, kept
        self.device_batch = batch_of_block(config.scoring.device_batch, config.pool.block)
        self.autoencoder = {"vae": model.parameters["vae"]}
        self.reencode = make_reencode(model)
        self.spreads: list[float] = []
        self.too_few_usable = self.too_few_kept = 0
        self.unusable = Unusable(config.pool.unusable_limit, prompts * config.pool.size)
        self.unusable_pairs = Unusable(config.pool.unusable_limit, prompts, "pairs")
        self.scores_seen: list[np.ndarray] = []
        self.channel_means: list[np.ndarray] = []
        self.ranks = RankStatistics()

    def pairs(self, blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
        """The pairs in the order of the prompts, without those whose winner and loser have the same score."""
        with progress(total=sum(len(b.prompts) for b in blocks), description="select_pairs", unit="prompt") as bar:
            for block in blocks:
                yield from self._pairs_of(block)
                bar.update(len(block.prompts))

    def _pairs_of(self, block: Block) -> Iterator[dict[str, Any]]:
        scores = self.scores.read_block(block, self.config.pool.size)
        kept = self.kept.read_block(block, self.config.pool.size) if self.kept else None
        pool = self.pool.latents.read_block(block, self.config.pool.size)
        # An image whose score is not finite is unusable, whatever the reason.
        usable = np.isfinite(scores)
        for index, column in enumerate(usable.T):
            self.unusable.add(column, "the scores of the pool", image_of(block.prompts, index))
        whole = usable.all(axis=1)
        if whole.any():
            self.ranks.add(pool[whole], scores[whole])
        loser_rank = self.config.pairs.loser_rank
        winners, losers = winners_and_losers(scores, loser_rank, usable if kept is None else usable & kept)
        too_few = usable.sum(axis=1) < max(loser_rank, 2)
        self.too_few_usable += int(too_few.sum())
        self.too_few_kept += int(((winners < 0) & ~too_few).sum())
        rows = np.flatnonzero(winners >= 0)
        self.scores_seen.append(np.where(usable, scores, np.nan))
        spreads = scores[rows, winners[rows]] - scores[rows, losers[rows]]
        differ = spreads > 0
        if not differ.any():
            self.spreads += spreads.tolist()
            return
        rows = rows[differ]
        latents = np.concatenate([pool[rows, winners[rows]], pool[rows, losers[rows]]])
        if self.config.pairs.latents == "encoded":
            latents = map_batches(
                lambda part: self.reencode(self.autoencoder, on_devices(latents[part])), len(latents), self.device_batch
            )
        with np.errstate(over="ignore"):
            winner_latents, loser_latents = np.split(latents.astype(np.float16), 2)
        finite = finite_rows(winner_latents) & finite_rows(loser_latents)
        prompts = [block.prompts[row] for row in rows]
        self.unusable_pairs.add(finite, "the latents that the VAE encodes", pair_of(prompts))
        if not finite.all():
            rows, winner_latents, loser_latents = rows[finite], winner_latents[finite], loser_latents[finite]
            differ[differ] = finite
            spreads = spreads[differ | (spreads <= 0)]
        self.spreads += spreads.tolist()
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
        # NaN where an image is unusable.
        scores, spreads = np.concatenate(self.scores_seen).astype(np.float64), np.asarray(self.spreads)
        scored = np.isfinite(scores).any(axis=1)
        winner_mean, loser_mean = np.concatenate(self.channel_means, axis=1).mean(axis=1)
        return {
            "prompts": len(scores),
            "pairs": int((spreads > 0).sum()),
            "unusable_images": self.unusable.count,
            "score_mean": np.nanmean(scores),
            # Of the images of one prompt: scores compare only within it.
            "score_standard_deviation": np.nanstd(scores[scored], axis=1).mean(),
            "spread_mean": spreads.mean(),
            "spread_quartiles": np.quantile(spreads, (0.25, 0.5, 0.75)).tolist(),
            # How far apart the pairs are in colour, which DPO alone would learn (Fig. 5b).
            "winner_channel_means": winner_mean.tolist(),
            "loser_channel_means": loser_mean.tolist(),
            "ranks": self.ranks.to_dict(),
        }
