"""Scores the images of the pool with the preference model (HG-DPO, Eq. 5)."""

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, fingerprint_of
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.pool import prompt_count
from hgdpo_jax.experiment.drawing import pool_of
from hgdpo_jax.experiment.prompts import number_of_prompts
from hgdpo_jax.experiment.scoring import check_scorer, complete_scores, rehearse_scorer, scoring_settings
from hgdpo_jax.files import write_json

INPUTS = ("generate_pool",)
NEEDS = ("weights.scorer",)
EVERY_HOST = True


def settings(experiment: Experiment) -> dict:
    return scoring_settings(experiment)


check = check_scorer
# Before drawing, which takes hours.
rehearse = rehearse_scorer


def plan(experiment: Experiment, run: StageRun) -> str:
    return f"{number_of_prompts(experiment, 'train') * experiment.pool.size:,} images decoded and scored"


def left(experiment: Experiment, run: StageRun) -> float:
    """The share of the images that are not scored yet, by this or another experiment."""
    pool, blocks = pool_of(experiment, run)
    scores = pool.scores(fingerprint_of(scoring_settings(experiment)))
    missing = prompt_count(block for block, _ in scores.missing(blocks, experiment.pool.size))
    return missing / (prompt_count(blocks) * experiment.pool.size)


def run(experiment: Experiment, run: StageRun) -> None:
    run.input("generate_pool")
    pool, scores, blocks = complete_scores(experiment, run)
    if hosts.is_first():
        write_json(
            run.folder / "scores.json",
            {
                "scores": f"{pool.folder.name}/{scores.folder.name}",
                "images": experiment.pool.size * prompt_count(blocks),
            },
        )
