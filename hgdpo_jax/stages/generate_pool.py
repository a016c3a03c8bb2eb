"""Draws the pool: for every training prompt the same number of images, as latents (HG-DPO, Eq. 4)."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, fingerprint_of
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.batching import finite_rows
from hgdpo_jax.data.pool import Block, Pool, blocks_of, write_behind
from hgdpo_jax.data.prompts import load_prompts, warn_long_prompts
from hgdpo_jax.data.unusable import Unusable, image_of
from hgdpo_jax.diffusion.schedule import STABLE_DIFFUSION
from hgdpo_jax.errors import UserError, as_user_error
from hgdpo_jax.families.stable_diffusion import files
from hgdpo_jax.families.stable_diffusion.model import Adapters, StableDiffusion
from hgdpo_jax.files import write_json
from hgdpo_jax.random_keys import image_noise
from hgdpo_jax.run_log import progress
from hgdpo_jax.settings import decisive
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.sources import resolve_source

INPUTS = ()
EVERY_HOST = True


def settings(experiment: Experiment) -> dict:
    return {
        **drawing_settings(experiment),
        # By their texts: a file may be edited, or lie elsewhere.
        "prompts.train": fingerprint_of({"texts": _prompts(experiment)}),
        "prompts.train_count": experiment.prompts.train_count,
        "pool.size": experiment.pool.size,
        "pool.block": experiment.pool.block,
    }


def drawing_settings(experiment: Experiment) -> dict:
    """What decides the image of a prompt and an image index, and so names the pool."""
    return {
        **base_fingerprints(experiment),
        "seed": experiment.seed,
        "dtype": experiment.dtype,
        **sampling_settings(experiment),
    }


def base_fingerprints(experiment: Experiment) -> dict[str, str]:
    """What decides the base, by the names of its settings: those left empty decide nothing."""

    def fingerprint(name: str, weights: bool) -> dict[str, str]:
        given = getattr(experiment.weights, name)
        if not given and name != "base":
            return {}
        source = resolve_source(given, weights)
        return {f"weights.{name}": folders.content_fingerprint(source, weights)}

    weights = fingerprint("base", True) | fingerprint("tokenizer", False) | fingerprint("vae", True)
    return weights | _scheduler_fingerprint(resolve_source(experiment.weights.base))


# Every stage asks, and pickled weights take a second to open.
@functools.cache
def _scheduler_fingerprint(base: epath.Path) -> dict[str, str]:
    """What a base in one file, or the .yaml beside it, says of its noise schedule; nothing where that is the usual one.

    A folder's configuration is a part of its content's fingerprint; but pools may be there that were drawn when Karras'
    noise levels were ignored.
    """
    if base.is_dir():
        has_file = (base / "scheduler" / "scheduler_config.json").is_file()
        karras = has_file and files.read_scheduler(base).get("use_karras_sigmas")
        return {"weights.base.use_karras_sigmas": "True"} if karras else {}
    config = files.read_scheduler(base)
    return {f"weights.base.{name}": str(value) for name, value in config.items() if value != STABLE_DIFFUSION.get(name)}


def name_of(experiment: Experiment, network: str) -> str:
    """How messages call a network of the base, with its source."""
    source = experiment.weights.vae if network == "VAE" and experiment.weights.vae else experiment.weights.base
    return f"the {network} of {source}"


def load_base(experiment: Experiment, dtype: str = "") -> StableDiffusion:
    """The base of a config, unless told in the config's type."""
    weights = experiment.weights
    return StableDiffusion.load(
        weights.base,
        dtype or experiment.dtype,
        tokenizer=weights.tokenizer,
        vae=weights.vae,
        attention=experiment.attention,
    )


def load_autoencoder(experiment: Experiment) -> StableDiffusion:
    """The base of a config without what draws, whose place on the devices the images can have."""
    return load_base(experiment).with_parameters(unet={}, text_encoder={})


def sampling_settings(experiment: Experiment) -> dict:
    """What decides, beside weights, prompt and noise, how any image is drawn: of the pool and of every evaluation."""
    return {f"pool.{name}": value for name, value in decisive(experiment.sampling).items()}


def check(experiment: Experiment) -> None:
    """Raises UserError where the pool gives no pairs, or the base cannot draw its images."""
    if experiment.pool.size < 2:
        raise UserError(f"pool.size is {experiment.pool.size}, expected at least 2: a pair needs a winner and a loser")
    check_base(experiment)


def check_base(experiment: Experiment) -> None:
    """Raises UserError where the base, by its configs alone, draws no such images as `pool` describes."""
    base, pool = experiment.weights.base, experiment.pool
    configs = files.read_configs(base, experiment.weights.vae)
    with as_user_error(f"the configs of {base} describe no model that can be built"):
        model = StableDiffusion.without_weights(configs, experiment.dtype, experiment.attention)
    model.require_drawable(pool.width, pool.height, pool.steps, pool.clip_skip)


def plan(experiment: Experiment, run: StageRun) -> str:
    pool, blocks = _pool(experiment, run)
    total = sum(len(block.prompts) for block in blocks) * experiment.pool.size
    words = (
        f"{total // experiment.pool.size:,} prompts x {experiment.pool.size} images of {experiment.pool.steps} steps"
    )
    missing = pool.latents.missing(blocks, experiment.pool.size)
    done = total - sum(len(block.prompts) for block, _ in missing)
    if not missing or not done:
        return words
    # So many prompts another experiment can take for its own pool, and need not wait.
    finished = sum(len(block.prompts) for block in blocks[: blocks.index(missing[0][0])])
    words += f"; drawn are {done:,} of {total:,} images, all of the first {finished:,} prompts"
    if rates := pool.rates():
        hours = (total - done) / sum(rates) / 3600
        words += f"; {sum(rates):.3g} images/s on {len(rates)} host{'s'[: len(rates) > 1]}, {hours:.1f} hours left"
    return words


def run(experiment: Experiment, run: StageRun) -> None:
    pool, blocks = complete_pool(experiment, run)
    if hosts.is_first():
        write_json(
            run.folder / "pool.json",
            {
                "pool": pool.folder.name,
                "blocks": [block.name for block in blocks],
                "images": experiment.pool.size * sum(len(block.prompts) for block in blocks),
            },
        )


def complete_pool(experiment: Experiment, run: StageRun) -> tuple[Pool, list[Block]]:
    """The pool and its blocks, with all images that were missing drawn, a share of them by each host."""
    pool, blocks = _pool(experiment, run)
    images = sum(len(block.prompts) for block in blocks) * experiment.pool.size
    draw = functools.partial(_draw, experiment, pool, images // hosts.count())
    while pool.latents.make_missing(blocks, experiment.pool.size, draw):
        pass
    return pool, blocks


def _pool(experiment: Experiment, run: StageRun) -> tuple[Pool, list[Block]]:
    """The pool, drawn or not, and its blocks."""
    pool = Pool(run.pools / fingerprint_of(drawing_settings(experiment)))
    return pool, blocks_of(_prompts(experiment), experiment.pool.block)


def batch_of_block(device_batch: int, block: int) -> int:
    """Rows a device at once: `device_batch`, or fewer where a whole block has fewer."""
    # Not of the rows at hand: one shape, so that one program serves all parts and a part's bytes are its own.
    return min(device_batch, -(-block // jax.local_device_count()))


def _draw(experiment: Experiment, pool: Pool, images: int, missing: Sequence[tuple[Block, int]]) -> None:
    """Draws missing parts, this host's share; `images` is the share of the whole pool."""
    if hosts.is_first():
        write_json(pool.folder / "settings.json", drawing_settings(experiment))
    model = load_base(experiment)
    if hosts.is_first():
        warn_long_prompts(
            [*_prompts(experiment), experiment.pool.negative_prompt],
            model.tokenizer,
            model.text_encoder.config.max_position_embeddings,
        )
    draw_parts(experiment, model, pool, missing, images, "generate_pool", note_rate=pool.note_rate)


def draw_parts(
    experiment: Experiment,
    model: StableDiffusion,
    pool: Pool,
    missing: Sequence[tuple[Block, int]],
    images: int,
    description: str,
    *,
    adapters: Adapters = (),
    latent_normalization: bool = False,
    note_rate: Callable[[float], object] | None = None,
) -> None:
    """Draws parts that are missing, with a progress bar.

    `images` is how many images this host is to have drawn when all is there; `note_rate` gets images a second.
    """
    shape = model.latent_shape(experiment.pool.width, experiment.pool.height)
    # As the text encoder's every layer sees it, for diffusers has it so.
    negative_states = model.encode_prompts([experiment.pool.negative_prompt], adapters=adapters)
    negative_finite = finite_rows(negative_states)

    # The images of a block come one after the other.
    @functools.lru_cache(1)
    def encoded(block: Block):
        states = model.encode_prompts(block.prompts, experiment.pool.clip_skip, adapters=adapters)
        return states, finite_rows(states) & negative_finite

    unusable = Unusable(experiment.pool.unusable_limit, images)

    def keep(block: Block, index: int, latents: np.ndarray, states_finite: np.ndarray) -> None:
        stored = pool.latents.stored(latents)
        usable = finite_rows(stored)
        of_text = not states_finite[~usable].all()
        # Not written where there are too many: a device that is mended draws them again.
        what = f"the values of {name_of(experiment, 'text encoder' if of_text else 'U-Net')}"
        unusable.add(usable, what, image_of(block.prompts, index))
        pool.latents.write(block, index, stored)

    done = images - sum(len(block.prompts) for block, _ in missing)
    with (
        progress(total=images, initial=done, description=description, unit="image") as bar,
        write_behind() as write,
    ):
        for block, index in missing:
            states, states_finite = encoded(block)
            latents = model.draw_latents(
                np.asarray(image_noise(experiment.seed, block.prompts, np.full(len(block.prompts), index), shape)),
                states,
                np.broadcast_to(negative_states, states.shape),
                adapters,
                steps=experiment.pool.steps,
                guidance=experiment.pool.guidance,
                latent_normalization=latent_normalization,
                device_batch=batch_of_block(experiment.pool.device_batch, experiment.pool.block),
                report=bar.update,
            )
            write(keep, block, index, latents, states_finite)
            if note_rate and (rate := bar.rate()):
                write(note_rate, rate)
    unusable.warn()


def _prompts(experiment: Experiment) -> list[str]:
    return load_prompts(experiment.prompts.train, experiment.prompts.train_count)
