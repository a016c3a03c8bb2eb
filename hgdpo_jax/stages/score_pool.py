"""Scores the images of the pool with the preference model (HG-DPO, Eq. 5)."""

from collections.abc import Sequence

import jax

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, fingerprint_of, write_json
from hgdpo_jax.data.pool import Block, DamagedPartError, Parts, Pool, write_behind
from hgdpo_jax.data.prompts import load_prompts
from hgdpo_jax.errors import UserError
from hgdpo_jax.pipelines.batching import map_batches, on_devices
from hgdpo_jax.pipelines.stable_diffusion import StableDiffusion
from hgdpo_jax.run_log import progress
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.stages.generate_pool import batch_of_block, complete_pool, load_base
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.sources import resolve_source

INPUTS = ("generate_pool",)
EVERY_HOST = True


def settings(config) -> dict:
    return {
        **scorer_fingerprints(config),
        "dtype": config.dtype,
        "scoring.framing": config.scoring.framing,
    }


def scorer_fingerprints(config) -> dict[str, str]:
    """What decides the scorer, by the names of its settings: one left empty decides nothing."""
    weights = config.weights
    prints = {"weights.scorer": folders.content_fingerprint(resolve_source(weights.scorer))}
    if weights.scorer_processor:
        processor = resolve_source(weights.scorer_processor, weights=False)
        prints["weights.scorer_processor"] = folders.content_fingerprint(processor, weights=False)
    return prints


def load_scorer(config) -> PickScore:
    """The scorer of a config, in the config's type."""
    return PickScore.load(config.weights.scorer, config.dtype, config.scoring.framing, config.weights.scorer_processor)


def check(config) -> None:
    """Raises UserError where the framing is unknown, the batch empty, or the scorer cannot be loaded."""
    if config.scoring.framing not in ("crop", "pad"):
        raise UserError(f"scoring.framing is {config.scoring.framing!r}, expected 'crop' or 'pad'")
    if config.scoring.device_batch < 1:
        raise UserError(f"scoring.device_batch is {config.scoring.device_batch}, expected at least 1")
    # Before the hours of drawing, not after them.
    load_scorer(config)


def plan(config, run: StageRun) -> str:
    prompts = load_prompts(config.prompts.train, config.prompts.train_count)
    return f"{len(prompts) * config.pool.size:,} images decoded and scored"


def run(config, run: StageRun) -> None:
    run.input("generate_pool")
    pool, scores, blocks = complete_scores(config, run)
    if hosts.is_first():
        write_json(
            run.folder / "scores.json",
            {
                "scores": f"{pool.folder.name}/{scores.folder.name}",
                "images": config.pool.size * sum(len(block.prompts) for block in blocks),
            },
        )


def complete_scores(config, run: StageRun) -> tuple[Pool, Parts, list[Block]]:
    """The pool, its scores and its blocks, with all scores that were missing made, and images that were damaged."""
    while True:
        pool, blocks = complete_pool(config, run)
        scores = pool.scores(fingerprint_of(settings(config)))
        missing = scores.missing_for_all(blocks, config.pool.size)
        if not missing:
            return pool, scores, blocks
        images = sum(len(block.prompts) for block in blocks) * config.pool.size
        _score(config, pool, scores, hosts.own(missing), images // hosts.count())


def make_score(model: StableDiffusion, scorer: PickScore):
    """One compiled function `(model's parameters, scorer's parameters, latents, prompt embeddings) -> scores`."""

    @jax.jit
    def score(autoencoder, parameters, latents, embeddings):
        return scorer.score_pixels(parameters, model.decode(autoencoder, latents), embeddings)

    return score


def _score(config, pool: Pool, scores: Parts, missing: Sequence[tuple[Block, int]], images: int) -> None:
    """Scores parts, this host's share, but for those whose latents are damaged; `images` is the share of the pool."""
    model = load_base(config)
    scorer = load_scorer(config)
    autoencoder, score = {"vae": model.parameters["vae"]}, make_score(model, scorer)
    device_batch = batch_of_block(config.scoring.device_batch, config.pool.block)

    embedded: tuple[Block | None, object] = (None, None)
    done = images - sum(len(block.prompts) for block, _ in missing)
    with (
        progress(total=images, initial=done, description="score_pool", unit="image") as bar,
        write_behind() as write,
    ):
        for block, index in missing:
            try:
                latents = pool.latents.read(block, index)
            except DamagedPartError:
                continue
            if embedded[0] != block:
                embedded = block, scorer.encode_prompts(block.prompts, device_batch)
            embeddings = embedded[1]

            def score_rows(rows, latents=latents, embeddings=embeddings):
                return score(autoencoder, scorer.parameters, on_devices(latents[rows]), on_devices(embeddings[rows]))

            values = map_batches(score_rows, len(latents), device_batch, bar.update)
            write(scores.write, block, index, values)
