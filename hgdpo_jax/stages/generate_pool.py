"""Draws the pool: the same number of images, as latents, for every training prompt (HG-DPO, Eq. 4)."""

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, flat
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.pool import prompt_count
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.drawing import complete_pool, drawing_settings, pool_of
from hgdpo_jax.experiment.models import check_base
from hgdpo_jax.experiment.prompts import number_of_prompts, prompts_fingerprint, train_prompts
from hgdpo_jax.files import write_json
from hgdpo_jax.settings import decisive

INPUTS = ()
NEEDS = ("weights.base", "prompts.train")
EVERY_HOST = True


def settings(experiment: Experiment) -> dict:
    return {
        **drawing_settings(experiment),
        **flat({"pool": decisive(experiment.pool)}),
        "prompts.train": prompts_fingerprint(train_prompts(experiment)),
        "prompts.train_count": experiment.prompts.train_count,
    }


def check(experiment: Experiment) -> None:
    """Raises UserError if the pool gives no pairs, or the base cannot draw its images."""
    if experiment.pool.size < 2:
        raise UserError(
            f"config.pool.size is {experiment.pool.size}, expected at least 2: a pair needs a winner and a loser"
        )
    check_base(experiment)


def plan(experiment: Experiment, run: StageRun) -> str:
    prompts, size = number_of_prompts(experiment, "train"), experiment.pool.size
    words = f"{prompts:,} prompts x {size} images of {experiment.pool.steps} steps"
    if not experiment.weights.base or not experiment.prompts.train:
        return words
    pool, blocks = pool_of(experiment, run)
    missing, total = pool.latents.missing(blocks, size), prompts * size
    done = total - prompt_count(block for block, _ in missing)
    if not missing or not done:
        return words
    # Another experiment can already use the images of this many prompts for its own pool.
    finished = prompt_count(blocks[: blocks.index(missing[0][0])])
    return f"{words}; drawn are {done:,} of {total:,} images, all of the first {finished:,} prompts"


def left(experiment: Experiment, run: StageRun) -> float:
    """The share of the images that are not drawn yet, by this or another experiment."""
    pool, blocks = pool_of(experiment, run)
    missing = prompt_count(block for block, _ in pool.latents.missing(blocks, experiment.pool.size))
    return missing / (prompt_count(blocks) * experiment.pool.size)


def run(experiment: Experiment, run: StageRun) -> None:
    pool, blocks = complete_pool(experiment, run)
    if hosts.is_first():
        write_json(
            run.folder / "pool.json",
            {
                "pool": pool.folder.name,
                "blocks": [block.name for block in blocks],
                "images": experiment.pool.size * prompt_count(blocks),
            },
        )
