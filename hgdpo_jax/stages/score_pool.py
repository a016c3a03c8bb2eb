"""Scores the images of the pool with the preference model (HG-DPO, Eq. 5)."""

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.pool import prompt_count
from hgdpo_jax.experiment.prompts import train_prompts
from hgdpo_jax.experiment.scoring import complete_scores, load_scorer, scoring_settings, try_out
from hgdpo_jax.files import write_json

INPUTS = ("generate_pool",)
EVERY_HOST = True


def settings(experiment: Experiment) -> dict:
    return scoring_settings(experiment)


def check(experiment: Experiment) -> None:
    """Raises UserError if the scorer cannot be loaded."""
    # Before drawing, which takes hours.
    try_out(experiment, load_scorer(experiment))


def plan(experiment: Experiment, run: StageRun) -> str:
    return f"{len(train_prompts(experiment)) * experiment.pool.size:,} images decoded and scored"


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
