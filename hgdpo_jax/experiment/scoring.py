"""Scoring images of an experiment, by the scorer that chooses pairs and by those that only evaluate."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float

from hgdpo_jax.artifacts import StageRun, fingerprint_of, flat
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.batching import finite_rows, map_batches
from hgdpo_jax.data.pool import Block, DamagedPartError, Parts, Pool, making
from hgdpo_jax.data.unusable import image_of
from hgdpo_jax.errors import UserError, naming
from hgdpo_jax.evaluation.measures import Measure, load_scores, score_sources
from hgdpo_jax.experiment.drawing import batch_of_block, complete_pool
from hgdpo_jax.experiment.models import load_autoencoder, name_of
from hgdpo_jax.experiment.prompts import test_prompts, train_prompts
from hgdpo_jax.families.model import Model
from hgdpo_jax.scorers.scorer import Scorer
from hgdpo_jax.scorers.sources import FUNCTION, ScorerSource
from hgdpo_jax.scorers.user_function import UserFunction
from hgdpo_jax.settings import decisive
from hgdpo_jax.weights import kinds
from hgdpo_jax.weights.conversion import shapes_only


def scoring_settings(experiment: Experiment) -> dict:
    """What decides the score of an image, and so names the scores of a pool."""
    return {
        "weights.scorer": scorer_source(experiment).fingerprint(),
        "dtype": experiment.dtype,
        **flat({"scoring": decisive(experiment.scoring)}),
    }


def sources_of(experiment: Experiment) -> dict[str, ScorerSource]:
    """The sources of an evaluation's scores by name: "scorer", which chose the pairs, and those of evaluate.scorers."""
    return score_sources(experiment.weights.scorer, experiment.evaluate.scorers)


def check_scorer(experiment: Experiment) -> None:
    """Raises UserError where the scorer that chooses the pairs cannot be loaded, as `check_scorers`."""
    _without_content(experiment, scorer_source(experiment))


def check_scorers(experiment: Experiment) -> None:
    """Raises UserError where one of `sources_of` cannot be loaded, as far as its files' names and shapes tell."""
    for source in sources_of(experiment).values():
        _without_content(experiment, source)


def rehearse_scorer(experiment: Experiment) -> None:
    """`rehearse_scorers` for the scorer that chooses the pairs."""
    _rehearse(experiment, [scorer_source(experiment)])


def rehearse_scorers(experiment: Experiment) -> None:
    """Raises UserError where a scorer of the user's own fails on a black picture of the experiment's size."""
    _rehearse(experiment, sources_of(experiment).values())


def _rehearse(experiment: Experiment, sources: Iterable[ScorerSource]) -> None:
    prompts = train_prompts if experiment.prompts.train else test_prompts
    for source in sources:
        if isinstance(scorer := _without_content(experiment, source), UserFunction):
            scorer.try_out(prompts(experiment)[0], experiment.pool.width, experiment.pool.height)


def _without_content(experiment: Experiment, source: ScorerSource) -> Scorer | UserFunction:
    dtype, framing = experiment.dtype, experiment.scoring.framing
    if source.kind == FUNCTION:
        return source.load(dtype, framing)
    with naming(source.setting), kinds.placed({source.setting: (source.source, kinds.CLIP)}):
        return loaded_without_content(source.text, source.setting, dtype, framing)


# Several stages check them.
@functools.cache
def loaded_without_content(text: str, setting: str, dtype: str, framing: str) -> Scorer | UserFunction:
    """A scorer with shapes for parameters; its cache is cleared before stages are checked."""
    source = ScorerSource.parse(text, setting)
    with shapes_only():
        return source.load(dtype, framing)


def scorer_source(experiment: Experiment) -> ScorerSource:
    """The source of the scorer that chooses the pairs; raises UserError where none is given."""
    if not experiment.weights.scorer:
        raise UserError("no scorer is given: set config.weights.scorer, for example to yuvalkirstain/PickScore_v1")
    return ScorerSource.parse(experiment.weights.scorer, "config.weights.scorer")


def load_scorer(experiment: Experiment) -> Scorer | UserFunction:
    """The scorer of a config, in the config's type."""
    return scorer_source(experiment).load(experiment.dtype, experiment.scoring.framing)


def score_fingerprints(experiment: Experiment) -> dict:
    """What decides the scores that an evaluation looks at."""
    scores = {name: source.fingerprint() for name, source in sources_of(experiment).items()}
    return flat({"scores": scores, "scoring": decisive(experiment.scoring)})


def scores_of(experiment: Experiment) -> dict[str, Measure]:
    """The scores of `sources_of`."""
    scoring = experiment.scoring
    return load_scores(sources_of(experiment), experiment.dtype, scoring.framing, scoring.device_batch)


def complete_scores(experiment: Experiment, run: StageRun) -> tuple[Pool, Parts, list[Block]]:
    """The pool, its scores and its blocks, with all scores that were missing made, and images that were damaged."""
    while True:
        pool, blocks = complete_pool(experiment, run)
        scores = pool.scores(fingerprint_of(scoring_settings(experiment)))
        score = functools.partial(_score, experiment, pool, scores)
        if not scores.make_missing(blocks, experiment.pool.size, score):
            return pool, scores, blocks


def make_score(model: Model, scorer: Scorer):
    """One compiled function `(model's parameters, scorer's parameters, latents, encoded prompts) -> scores, decoded`.

    `decoded` says of each image whether the autoencoder decoded it to finite values.
    """

    @jax.jit
    def score(autoencoder, parameters, latents, prompts):
        pixels, decoded = model.decode_checked(autoencoder, latents)
        return scorer.score_pixels(parameters, pixels, prompts), decoded

    return score


def _score(
    experiment: Experiment, pool: Pool, scores: Parts, missing: Sequence[tuple[Block, int]], images: int
) -> None:
    """Scores parts, this host's share, except those whose latents are damaged; `images` is the share of the pool."""
    device_batch = batch_of_block(experiment.scoring.device_batch, experiment.pool.block)
    score_part = _make_score_part(load_autoencoder(experiment), load_scorer(experiment), device_batch)
    kinds = (
        "the latents of the pool",
        f"the pictures that {name_of(experiment, 'autoencoder')} decodes",
        f"the scores of weights.scorer, {experiment.weights.scorer},",
    )
    with making(missing, images, "score_pool", experiment.pool.unusable_limit) as (bar, write, unusable):
        for block, index in missing:
            with contextlib.suppress(DamagedPartError):
                latents = pool.latents.read(block, index)
                scored, decoded = score_part(block, latents)
                scored = scores.stored(np.where(decoded, scored, np.nan))
                finite = dict(zip(kinds, (finite_rows(latents), decoded, finite_rows(scored)), strict=True))
                unusable.add(finite, image_of(block.prompts, index))
                write(scores.write, block, index, scored)
                bar.update(len(block.prompts))


def _make_score_part(
    model: Model, scorer: Scorer | UserFunction, device_batch: int
) -> Callable[[Block, Float[np.ndarray, "n h w c"]], tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]]:
    """A function of a block and one latent per prompt of it; it returns scores and `decoded`, as `make_score`."""
    if isinstance(scorer, UserFunction):

        def score_decoded(block: Block, latents: np.ndarray):
            images, decoded = model.decode_latents_checked(latents, device_batch)
            return scorer.score(images, block.prompts), decoded

        return score_decoded
    autoencoder, score = {"autoencoder": model.parameters["autoencoder"]}, make_score(model, scorer)
    # The images of a block come one after the other.
    encoded = functools.lru_cache(1)(lambda block: scorer.encode_prompts(block.prompts, device_batch))

    def score_part(block: Block, latents: np.ndarray):
        return map_batches(
            lambda rows: score(autoencoder, scorer.parameters, *rows), (latents, encoded(block)), device_batch
        )

    return score_part
