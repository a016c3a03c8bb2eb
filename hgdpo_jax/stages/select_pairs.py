"""Makes preference pairs of the best and the worst image of each prompt's pool (HG-DPO, Eq. 6)."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float16, Int32

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, flat
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.batching import map_batches
from hgdpo_jax.data.choice import winners_and_losers
from hgdpo_jax.data.image_filter import apply_filter, load_filter
from hgdpo_jax.data.pair_parts import PairParts, SelectedBlock
from hgdpo_jax.data.pairs import write_pairs
from hgdpo_jax.data.pool import Block, DamagedPartError, Parts, Pool, making, prompt_count, read_ahead, write_behind
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.pool_statistics import STATISTICS, PoolStatistics, UnusablePairs
from hgdpo_jax.evaluation.rank_statistics import channel_statistics, rank_distances
from hgdpo_jax.experiment.drawing import batch_of_block
from hgdpo_jax.experiment.encoding import make_reencode
from hgdpo_jax.experiment.models import check_base, load_autoencoder, name_of
from hgdpo_jax.experiment.prompts import number_of_prompts
from hgdpo_jax.experiment.ranked_images import write_ranked
from hgdpo_jax.experiment.scoring import complete_scores
from hgdpo_jax.families.model import Model
from hgdpo_jax.files import write_json
from hgdpo_jax.run_log import progress
from hgdpo_jax.settings import decisive

INPUTS = ("score_pool",)
EVERY_HOST = True
# Blocks read in advance: each takes 12 MB for 64 prompts of 704x1024 pixels.
_BLOCKS_AHEAD = 8


def settings(experiment: Experiment) -> dict:
    found = {"pool.size": experiment.pool.size, **flat({"pairs": decisive(experiment.pairs)})}
    # A filter counts by the content of its file, not by its name alone.
    if source := experiment.pairs.filter:
        found["pairs.filter"] = f"{source} {load_filter(source)[1]}"
    return found


def check(experiment: Experiment) -> None:
    """Raises UserError if no loser has that rank, or the base cannot draw its images."""
    rank, size = experiment.pairs.loser_rank, experiment.pool.size
    if rank and not 2 <= rank <= size:
        raise UserError(
            f"config.pairs.loser_rank is {rank}, expected 2 to {size} (config.pool.size), or 0 for the lowest score"
        )
    check_base(experiment)


def rehearse(experiment: Experiment) -> None:
    """Raises UserError if the filter fails on black pictures."""
    if experiment.pairs.filter:
        black = np.zeros((2, experiment.pool.height, experiment.pool.width, 3), np.uint8)
        apply_filter(load_filter(experiment.pairs.filter)[0], black, ["a black picture"] * 2)


def plan(experiment: Experiment, run: StageRun) -> str:
    return f"at most {number_of_prompts(experiment, 'train'):,} pairs"


def run(experiment: Experiment, run: StageRun) -> None:
    run.input("score_pool")
    model = load_autoencoder(experiment)
    shape = model.latent_shape(experiment.pool.width, experiment.pool.height)
    parts = PairParts(run.folder / "parts")
    # The statistics are written last: once they exist, only the parts remain to be removed.
    while not hosts.from_first((run.folder / STATISTICS).is_file()):
        pool, scores, blocks = complete_scores(experiment, run)
        kept = pool.kept(load_filter(experiment.pairs.filter)[1]) if experiment.pairs.filter else None
        if kept and kept.make_missing(
            blocks, experiment.pool.size, functools.partial(_filter, experiment, model, pool, kept)
        ):
            continue
        if missing := parts.missing_for_all(blocks):
            read = functools.partial(_read, experiment, pool, scores, kept, shape)
            prompts = prompt_count(blocks) // hosts.count()
            _select(experiment, model, read, parts, hosts.own(missing), prompts)
            continue
        ranked = functools.partial(write_ranked, experiment, model, pool, scores, kept, blocks, run.folder)
        hosts.by_first(functools.partial(_write, experiment, run, parts, blocks, shape, ranked))
    if hosts.is_first():
        parts.remove()


def _filter(
    experiment: Experiment, model: Model, pool: Pool, kept: Parts, parts: Sequence[tuple[Block, int]], images: int
) -> None:
    """Applies the filter to the images of some parts, except those whose latents are damaged."""
    device_batch = batch_of_block(experiment.scoring.device_batch, experiment.pool.block)
    image_filter, _ = load_filter(experiment.pairs.filter)
    with making(parts, images, "filter images", experiment.pool.unusable_limit) as (bar, write, _):
        for block, index in parts:
            with contextlib.suppress(DamagedPartError):
                pixels, _ = model.decode_latents_checked(pool.latents.read(block, index), device_batch)
                write(kept.write, block, index, apply_filter(image_filter, pixels, block.prompts))
                bar.update(len(pixels))


def _read(
    experiment: Experiment, pool: Pool, scores: Parts, kept: Parts | None, shape: Sequence[int], block: Block
) -> dict[str, np.ndarray] | None:
    """The fields of a block's selection, with pool `latents` `[2, pairs, h, w, c]`; None if a part is damaged."""
    size = experiment.pool.size
    with contextlib.suppress(DamagedPartError):
        of_block = scores.read_block(block, size)
        # An image whose score is not finite is unusable, for whatever reason.
        usable = np.isfinite(of_block)
        allowed = usable & kept.read_block(block, size) if kept else usable
        winners, losers = winners_and_losers(of_block, experiment.pairs.loser_rank, allowed)
        rows = np.flatnonzero(winners >= 0)
        rows = rows[of_block[rows, winners[rows]] > of_block[rows, losers[rows]]]
        latents, statistics = np.empty((2, len(rows), *shape), np.float16), []
        for index in range(size):
            # Reads the other images too, so that all damaged ones are drawn again at once.
            with contextlib.suppress(DamagedPartError):
                of_index = pool.latents.read(block, index)
                for side, indices in zip(latents, (winners, losers), strict=True):
                    chosen = indices[rows] == index
                    side[chosen] = of_index[rows[chosen]]
                statistics.append(channel_statistics(of_index))
        if len(statistics) == size:
            whole = usable.all(axis=1)
            return {
                "scores": np.where(usable, of_block, np.float32(np.nan)),
                "winners": winners.astype(np.int32),
                "losers": losers.astype(np.int32),
                "rows": rows.astype(np.int32),
                "latents": latents,
                "distances": rank_distances(np.stack(statistics, axis=2)[:, whole], of_block[whole]),
            }
    return None


def _select(
    experiment: Experiment,
    model: Model,
    read: Callable[[Block], dict[str, np.ndarray] | None],
    parts: PairParts,
    missing: Sequence[Block],
    prompts: int,
) -> None:
    """Selects from blocks, this process's share, except those with damaged parts.

    `read` is `_read` of a block; `prompts` is this process's share of all prompts.
    """
    device_batch = batch_of_block(experiment.scoring.device_batch, experiment.pool.block)
    autoencoder, reencode = {"autoencoder": model.parameters["autoencoder"]}, make_reencode(model)

    def encode(latents: np.ndarray) -> np.ndarray:
        if experiment.pairs.latents == "sampled" or not len(latents):
            return latents
        return map_batches(functools.partial(reencode, autoencoder), latents, device_batch)

    unusable = _unusable(experiment, prompts)
    done = prompts - prompt_count(missing)
    with (
        progress(total=prompts, initial=done, description="select_pairs", unit="prompt") as bar,
        write_behind() as write,
    ):
        for block, found in zip(missing, read_ahead(read, missing, _BLOCKS_AHEAD), strict=True):
            if found:
                selected = _selected(encode, **found)
                # Not written where too many are unusable, so that the block is encoded again by a repaired VAE.
                unusable.add(block, selected)
                write(parts.write, block, selected)
                bar.update(len(block.prompts))


def _selected(
    encode: Callable[[np.ndarray], np.ndarray],
    latents: Float16[np.ndarray, "2 pairs h w c"],
    rows: Int32[np.ndarray, " pairs"],
    **fields: np.ndarray,
) -> SelectedBlock:
    """The selection that `_read` returns, after `encode` of the latents of the winners, then of the losers."""
    with np.errstate(over="ignore"):
        encoded = encode(latents.reshape(-1, *latents.shape[2:])).astype(np.float16).reshape(latents.shape)
    finite = np.isfinite(encoded).all(axis=(0, 2, 3, 4))
    winner_latents, loser_latents = encoded[:, finite]
    return SelectedBlock(
        rows=rows[finite],
        unencodable=rows[~finite],
        winner_latents=winner_latents,
        loser_latents=loser_latents,
        channel_means=np.stack([channel_statistics(side)[0] for side in (winner_latents, loser_latents)]),
        **fields,
    )


def _unusable(experiment: Experiment, prompts: int) -> UnusablePairs:
    encoded = f"the latents that {name_of(experiment, 'autoencoder')} encodes"
    return UnusablePairs(experiment.pool.unusable_limit, prompts, experiment.pool.size, encoded)


def _write(
    experiment: Experiment,
    run: StageRun,
    parts: PairParts,
    blocks: Sequence[Block],
    latent_shape: Sequence[int],
    write_pictures: Callable[[], None],
) -> None:
    """Writes the files of the pairs, in the order of the prompts, and the statistics of scores and pairs.

    Before them it calls `write_pictures`. Writes no statistics if a part is damaged: the part is missing then, and
    made again.
    """
    prompts = prompt_count(blocks)
    summary = PoolStatistics(experiment.pairs.loser_rank, _unusable(experiment, prompts))

    def pairs() -> Iterator[dict[str, Any]]:
        with progress(total=prompts, description="select_pairs: files", unit="prompt") as bar:
            for block, selected in zip(blocks, read_ahead(parts.read, blocks), strict=True):
                summary.add(block, selected)
                yield from _pairs_of(block, selected)
                bar.update(len(block.prompts))

    try:
        write_pictures()
        count = write_pairs(run.folder, pairs(), latent_shape)
    except DamagedPartError:
        return
    for left_out, reason in (
        (summary.too_few_usable, "too few of their images are usable"),
        (summary.too_few_kept, "the filter keeps too few of their images"),
        (summary.unusable.pairs.count, "the autoencoder encodes winner or loser to values that are not finite"),
        (sum(map(len, summary.margins)) - count, "winner and loser have the same score"),
    ):
        if left_out:
            print(f"{left_out:,} of {prompts:,} prompts left out: {reason}")
    summary.unusable.images.warn()
    write_json(run.folder / STATISTICS, summary.to_dict())


def _pairs_of(block: Block, selected: SelectedBlock) -> Iterator[dict[str, Any]]:
    """The pairs of a block, in the order of its prompts."""
    for row, winner_latents, loser_latents in zip(
        selected.rows, selected.winner_latents, selected.loser_latents, strict=True
    ):
        winner, loser = selected.winners[row], selected.losers[row]
        yield {
            "prompt": block.prompts[row],
            "winner_latents": winner_latents,
            "loser_latents": loser_latents,
            "winner_score": selected.scores[row, winner],
            "loser_score": selected.scores[row, loser],
            "winner_index": int(winner),
            "loser_index": int(loser),
        }
