"""Draws the pool: for every training prompt the same number of images, as latents (HG-DPO, Eq. 4)."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, fingerprint_of
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
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.sources import resolve_source

INPUTS = ()
EVERY_HOST = True


def settings(config) -> dict:
    return {
        **drawing_settings(config),
        # By their texts: a file may be edited, or lie elsewhere.
        "prompts.train": fingerprint_of({"texts": _prompts(config)}),
        "prompts.train_count": config.prompts.train_count,
        "pool.size": config.pool.size,
        "pool.block": config.pool.block,
    }


def drawing_settings(config) -> dict:
    """What decides the image of a prompt and an image index, and so names the pool."""
    return {
        **base_fingerprints(config),
        "seed": config.seed,
        "dtype": config.dtype,
        **sampling_settings(config),
    }


def base_fingerprints(config) -> dict[str, str]:
    """What decides the base, by the names of its settings: those left empty decide nothing."""

    def fingerprint(name: str, weights: bool) -> dict[str, str]:
        if not config.weights[name] and name != "base":
            return {}
        source = resolve_source(config.weights[name], weights)
        return {f"weights.{name}": folders.content_fingerprint(source, weights)}

    weights = fingerprint("base", True) | fingerprint("tokenizer", False) | fingerprint("vae", True)
    return weights | _scheduler_fingerprint(resolve_source(config.weights.base))


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


def name_of(config, network: str) -> str:
    """How messages call a network of the base, with its source."""
    source = config.weights.vae if network == "VAE" and config.weights.vae else config.weights.base
    return f"the {network} of {source}"


def load_base(config, dtype: str = "") -> StableDiffusion:
    """The base of a config, unless told in the config's type."""
    weights = config.weights
    return StableDiffusion.load(
        weights.base,
        dtype or config.dtype,
        tokenizer=weights.tokenizer,
        vae=weights.vae,
        attention=config.attention,
    )


def load_autoencoder(config) -> StableDiffusion:
    """The base of a config without what draws, whose place on the devices the images can have."""
    return load_base(config).with_parameters(unet={}, text_encoder={})


def sampling_settings(config) -> dict:
    """What decides, beside weights, prompt and noise, how any image is drawn: of the pool and of every evaluation."""
    names = ("steps", "guidance", "negative_prompt", "clip_skip", "width", "height")
    return {f"pool.{name}": config.pool[name] for name in names}


def check(config) -> None:
    """Raises UserError where the pool gives no pairs, or the base cannot draw its images."""
    if config.pool.size < 2:
        raise UserError(f"pool.size is {config.pool.size}, expected at least 2: a pair needs a winner and a loser")
    check_base(config)


def check_base(config) -> None:
    """Raises UserError where the base, by its configs alone, draws no such images as `pool` describes."""
    base, pool = config.weights.base, config.pool
    configs = files.read_configs(base, config.weights.vae)
    with as_user_error(f"the configs of {base} describe no model that can be built"):
        model = StableDiffusion.without_weights(configs, config.dtype, config.attention)
    model.require_drawable(pool.width, pool.height, pool.steps, pool.clip_skip)


def plan(config, run: StageRun) -> str:
    pool, blocks = _pool(config, run)
    total = sum(len(block.prompts) for block in blocks) * config.pool.size
    words = f"{total // config.pool.size:,} prompts x {config.pool.size} images of {config.pool.steps} steps"
    missing = pool.latents.missing(blocks, config.pool.size)
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


def run(config, run: StageRun) -> None:
    pool, blocks = complete_pool(config, run)
    if hosts.is_first():
        write_json(
            run.folder / "pool.json",
            {
                "pool": pool.folder.name,
                "blocks": [block.name for block in blocks],
                "images": config.pool.size * sum(len(block.prompts) for block in blocks),
            },
        )


def complete_pool(config, run: StageRun) -> tuple[Pool, list[Block]]:
    """The pool and its blocks, with all images that were missing drawn, a share of them by each host."""
    pool, blocks = _pool(config, run)
    images = sum(len(block.prompts) for block in blocks) * config.pool.size
    draw = functools.partial(_draw, config, pool, images // hosts.count())
    while pool.latents.make_missing(blocks, config.pool.size, draw):
        pass
    return pool, blocks


def _pool(config, run: StageRun) -> tuple[Pool, list[Block]]:
    """The pool, drawn or not, and its blocks."""
    pool = Pool(run.pools / fingerprint_of(drawing_settings(config)))
    return pool, blocks_of(_prompts(config), config.pool.block)


def batch_of_block(device_batch: int, block: int) -> int:
    """Rows a device at once: `device_batch`, or fewer where a whole block has fewer."""
    # Not of the rows at hand: one shape, so that one program serves all parts and a part's bytes are its own.
    return min(device_batch, -(-block // jax.local_device_count()))


def _draw(config, pool: Pool, images: int, missing: Sequence[tuple[Block, int]]) -> None:
    """Draws missing parts, this host's share; `images` is the share of the whole pool."""
    if hosts.is_first():
        write_json(pool.folder / "settings.json", drawing_settings(config))
    model = load_base(config)
    if hosts.is_first():
        warn_long_prompts(
            [*_prompts(config), config.pool.negative_prompt],
            model.tokenizer,
            model.text_encoder.config.max_position_embeddings,
        )
    draw_parts(config, model, pool, missing, images, "generate_pool", note_rate=pool.note_rate)


def draw_parts(
    config,
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
    shape = model.latent_shape(config.pool.width, config.pool.height)
    # As the text encoder's every layer sees it, for diffusers has it so.
    negative_states = model.encode_prompts([config.pool.negative_prompt], adapters=adapters)
    negative_finite = finite_rows(negative_states)

    # The images of a block come one after the other.
    @functools.lru_cache(1)
    def encoded(block: Block):
        states = model.encode_prompts(block.prompts, config.pool.clip_skip, adapters=adapters)
        return states, finite_rows(states) & negative_finite

    unusable = Unusable(config.pool.unusable_limit, images)

    def keep(block: Block, index: int, latents: np.ndarray, states_finite: np.ndarray) -> None:
        stored = pool.latents.stored(latents)
        usable = finite_rows(stored)
        of_text = not states_finite[~usable].all()
        # Not written where there are too many: a device that is mended draws them again.
        what = f"the values of {name_of(config, 'text encoder' if of_text else 'U-Net')}"
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
                np.asarray(image_noise(config.seed, block.prompts, np.full(len(block.prompts), index), shape)),
                states,
                np.broadcast_to(negative_states, states.shape),
                adapters,
                steps=config.pool.steps,
                guidance=config.pool.guidance,
                latent_normalization=latent_normalization,
                device_batch=batch_of_block(config.pool.device_batch, config.pool.block),
                report=bar.update,
            )
            write(keep, block, index, latents, states_finite)
            if note_rate and (rate := bar.rate()):
                write(note_rate, rate)
    unusable.warn()


def _prompts(config) -> list[str]:
    return load_prompts(config.prompts.train, config.prompts.train_count)
