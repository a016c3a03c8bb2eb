"""Makes preference pairs of the best and the worst image of each prompt's pool (HG-DPO, Eq. 6)."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.batching import finite_rows, map_batches
from hgdpo_jax.data.choice import Choice, winners_and_losers
from hgdpo_jax.data.image_filter import apply_filter, filter_pool, load_filter
from hgdpo_jax.data.pair_parts import PairParts, SelectedBlock
from hgdpo_jax.data.pairs import write_pairs
from hgdpo_jax.data.pool import Block, DamagedPartError, Parts, Pool, read_ahead, write_behind
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.pool_statistics import STATISTICS, PoolStatistics, UnusablePairs
from hgdpo_jax.evaluation.rank_statistics import channel_statistics, rank_distances
from hgdpo_jax.experiment.drawing import batch_of_block
from hgdpo_jax.experiment.encoding import make_reencode
from hgdpo_jax.experiment.models import load_autoencoder, name_of
from hgdpo_jax.experiment.prompts import train_prompts
from hgdpo_jax.experiment.scoring import complete_scores
from hgdpo_jax.families.model import Model
from hgdpo_jax.files import write_json
from hgdpo_jax.run_log import progress
from hgdpo_jax.settings import decisive

INPUTS = ("score_pool",)
EVERY_HOST = True


def settings(experiment: Experiment) -> dict:
    return {
        "pool.size": experiment.pool.size,
        **{f"pairs.{name}": value for name, value in decisive(experiment.pairs).items()},
    } | _filter_settings(experiment)


def _filter_settings(experiment: Experiment) -> dict:
    # A filter counts by its file, not by its name alone.
    if not experiment.pairs.filter:
        return {}
    return {"pairs.filter": f"{experiment.pairs.filter} {load_filter(experiment.pairs.filter)[1]}"}


def check(experiment: Experiment) -> None:
    """Raises UserError where a loser of that rank does not exist, or a filter fails."""
    rank, size = experiment.pairs.loser_rank, experiment.pool.size
    if rank and not 2 <= rank <= size:
        raise UserError(f"pairs.loser_rank is {rank}, expected 2 to {size} (pool.size), or 0 for the lowest score")
    if experiment.pairs.filter:
        black = np.zeros((2, experiment.pool.height, experiment.pool.width, 3), np.uint8)
        apply_filter(load_filter(experiment.pairs.filter)[0], black, ["a black picture"] * 2)


def plan(experiment: Experiment, run: StageRun) -> str:
    return f"at most {len(train_prompts(experiment)):,} pairs"


def run(experiment: Experiment, run: StageRun) -> None:
    run.input("score_pool")
    model = load_autoencoder(experiment)
    parts = PairParts(run.folder / "parts")
    # The statistics are written last: where they are, only the parts are left to be removed.
    while not hosts.from_first((run.folder / STATISTICS).is_file()):
        pool, scores, blocks = complete_scores(experiment, run)
        kept = _kept(experiment, pool)
        if kept and kept.make_missing(
            blocks, experiment.pool.size, functools.partial(_filter, experiment, model, pool, kept)
        ):
            continue
        if missing := parts.missing_for_all(blocks):
            prompts = sum(len(block.prompts) for block in blocks) // hosts.count()
            _select(experiment, model, pool, scores, kept, parts, hosts.own(missing), prompts)
            continue
        shape = model.latent_shape(experiment.pool.width, experiment.pool.height)
        hosts.by_first(functools.partial(_write, experiment, run, parts, blocks, shape))
    if hosts.is_first():
        parts.remove()


def _kept(experiment: Experiment, pool: Pool) -> Parts | None:
    """What the filter says of the pool; None without a filter."""
    return pool.kept(load_filter(experiment.pairs.filter)[1]) if experiment.pairs.filter else None


def _filter(experiment: Experiment, model: Model, pool: Pool, kept: Parts, parts: Sequence[tuple[Block, int]]) -> None:
    device_batch = batch_of_block(experiment.scoring.device_batch, experiment.pool.block)
    image_filter = load_filter(experiment.pairs.filter)[0]
    filter_pool(image_filter, lambda x: model.decode_latents_checked(x, device_batch)[0], pool, kept, parts)


@dataclasses.dataclass(frozen=True)
class _Image:
    """One image of each prompt of a block."""

    choice: Choice
    statistics: Float[np.ndarray, "2 prompts c"]
    # Of the images that are winners, and losers, of a pair.
    latents: tuple[Float[np.ndarray, "n h w c"], Float[np.ndarray, "m h w c"]]


def _images(
    experiment: Experiment, pool: Pool, scores: Parts, kept: Parts | None, blocks: Sequence[Block]
) -> Iterator[list[_Image | None]]:
    """The images of one block after the other, read ahead; None for one that is damaged.

    Blocks whose scores are damaged are left out.
    """
    size = experiment.pool.size

    def choose(block: Block) -> Choice | None:
        with contextlib.suppress(DamagedPartError):
            of_block = scores.read_block(block, size)
            # An image whose score is not finite is unusable, whatever the reason.
            usable = np.isfinite(of_block)
            allowed = usable & kept.read_block(block, size) if kept else usable
            places = winners_and_losers(of_block, experiment.pairs.loser_rank, allowed)
            return Choice(block, np.where(usable, of_block, np.float32(np.nan)), *places)
        return None

    def read(task: tuple[Choice, int]) -> _Image | None:
        choice, index = task
        with contextlib.suppress(DamagedPartError):
            latents = pool.latents.read(choice.block, index)
            winners, losers = (latents[choice.rows[chosen]] for chosen in choice.chosen(index))
            return _Image(choice, channel_statistics(latents), (winners, losers))
        return None

    choices = (choice for choice in read_ahead(choose, blocks) if choice)
    images = read_ahead(read, ((choice, index) for choice in choices for index in range(size)))
    while of_block := list(itertools.islice(images, size)):
        yield of_block


def _select(
    experiment: Experiment,
    model: Model,
    pool: Pool,
    scores: Parts,
    kept: Parts | None,
    parts: PairParts,
    missing: Sequence[Block],
    prompts: int,
) -> None:
    """Selects from blocks, this host's share, but from those where something is damaged.

    `prompts` is the share of all prompts.
    """
    device_batch = batch_of_block(experiment.scoring.device_batch, experiment.pool.block)
    autoencoder, reencode = {"autoencoder": model.parameters["autoencoder"]}, make_reencode(model)

    def encode(latents: np.ndarray) -> np.ndarray:
        if experiment.pairs.latents == "sampled" or not len(latents):
            return latents
        return map_batches(functools.partial(reencode, autoencoder), latents, device_batch)

    unusable = _unusable(experiment, prompts)
    done = prompts - sum(len(block.prompts) for block in missing)
    with (
        progress(total=prompts, initial=done, description="select_pairs", unit="prompt") as bar,
        write_behind() as write,
    ):
        for of_block in _images(experiment, pool, scores, kept, missing):
            whole = [image for image in of_block if image]
            if len(whole) == len(of_block):
                selected = _selected(whole, encode)
                block = whole[0].choice.block
                # Not written where there are too many: with a corrected autoencoder the block is encoded again.
                unusable.add(block, selected)
                write(parts.write, block, selected)
                bar.update(len(block.prompts))


def _selected(images: Sequence[_Image], encode: Callable[[np.ndarray], np.ndarray]) -> SelectedBlock:
    """What is selected from a block, of which all images are given; `encode` is called with winners and losers."""
    choice = images[0].choice
    sides = np.empty((2, len(choice.rows), *images[0].latents[0].shape[1:]), np.float16)
    for index, image in enumerate(images):
        for side, chosen in enumerate(choice.chosen(index)):
            sides[side, chosen] = image.latents[side]
    with np.errstate(over="ignore"):
        encoded = encode(sides.reshape(-1, *sides.shape[2:])).astype(np.float16)
    finite = finite_rows(encoded).reshape(2, -1).all(axis=0)
    winner_latents, loser_latents = (side[finite] for side in np.split(encoded, 2))
    whole = np.isfinite(choice.scores).all(axis=1)
    statistics = np.stack([image.statistics[:, whole] for image in images], axis=2)
    return SelectedBlock(
        scores=choice.scores,
        winners=choice.winners.astype(np.int32),
        losers=choice.losers.astype(np.int32),
        rows=choice.rows[finite].astype(np.int32),
        unencodable=choice.rows[~finite].astype(np.int32),
        winner_latents=winner_latents,
        loser_latents=loser_latents,
        channel_means=np.stack([channel_statistics(side)[0] for side in (winner_latents, loser_latents)]),
        distances=rank_distances(statistics, choice.scores[whole]),
    )


def _unusable(experiment: Experiment, prompts: int) -> UnusablePairs:
    encoded = f"the latents that {name_of(experiment, 'autoencoder')} encodes"
    return UnusablePairs(experiment.pool.unusable_limit, prompts, experiment.pool.size, encoded)


def _write(
    experiment: Experiment, run: StageRun, parts: PairParts, blocks: Sequence[Block], latent_shape: Sequence[int]
) -> None:
    """Writes the files of the pairs, in the order of the prompts, and what scores and pairs look like.

    Where a part is damaged it writes nothing: the part is missing then.
    """
    prompts = sum(len(block.prompts) for block in blocks)
    summary = PoolStatistics(experiment.pairs.loser_rank, _unusable(experiment, prompts))

    def pairs() -> Iterator[dict[str, Any]]:
        with progress(total=prompts, description="select_pairs: files", unit="prompt") as bar:
            for block, selected in zip(blocks, read_ahead(parts.read, blocks), strict=True):
                summary.add(block, selected)
                yield from _pairs_of(block, selected)
                bar.update(len(block.prompts))

    try:
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
