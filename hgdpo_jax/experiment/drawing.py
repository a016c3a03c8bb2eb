"""Drawing images of an experiment: those of its pool, of validation, of samples and of evaluations."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, fingerprint_of, flat
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.batching import finite_rows
from hgdpo_jax.data.pool import Block, Pool, blocks_of, making
from hgdpo_jax.data.prompts import warn_long_prompts
from hgdpo_jax.data.unusable import image_of
from hgdpo_jax.diffusion import dpm_solver
from hgdpo_jax.diffusion.sampling import Sampling
from hgdpo_jax.experiment.models import base_fingerprints, load_base, name_of
from hgdpo_jax.experiment.prompts import train_prompts
from hgdpo_jax.families.model import Model
from hgdpo_jax.families.protocol import Adapters, Conditioning
from hgdpo_jax.files import write_json
from hgdpo_jax.random_keys import image_noise
from hgdpo_jax.settings import decisive


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A model that draws; the image of a prompt and an image index is a function of weights, seed and sampling.

    `adapters` add to the model at their scales, with `latent_normalization` beside the model without them (Eq. 7).
    """

    model: Model
    sampling: Sampling
    seed: int
    device_batch: int
    adapters: Adapters = ()
    latent_normalization: bool = False
    # Of the prompts encoded last: the images of a block come one after the other.
    _encoded: dict[tuple[str, ...], tuple[Conditioning, Conditioning, np.ndarray]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def latents(
        self, prompts: Sequence[str], indices: np.ndarray, report: Callable[[int], object] | None = None
    ) -> Float[np.ndarray, "n h w c"]:
        """Scaled latents of one image per prompt; `indices` say which image of its prompt each is."""
        sampling, (conditioning, negative, _) = self.sampling, self._conditioning(tuple(prompts))
        shape = self.model.latent_shape(sampling.width, sampling.height)
        return self.model.draw_latents(
            np.asarray(image_noise(self.seed, prompts, indices, shape)),
            conditioning,
            negative,
            self.adapters,
            steps=sampling.steps,
            guidance=sampling.guidance,
            latent_normalization=self.latent_normalization,
            device_batch=self.device_batch,
            report=report,
        )

    def images(
        self, prompts: Sequence[str], indices: np.ndarray, report: Callable[[int], object] | None = None
    ) -> tuple[UInt8[np.ndarray, "n height width 3"], Bool[np.ndarray, " n"]]:
        """Pixels of the same images, and which of them can be used: all of their values were finite."""
        return self.model.decode_latents_checked(self.latents(prompts, indices, report), self.device_batch)

    def conditioning_finite(self, prompts: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Whether the conditioning of each prompt and of the negative prompt is finite."""
        return self._conditioning(tuple(prompts))[2]

    def _conditioning(self, prompts: tuple[str, ...]) -> tuple[Conditioning, Conditioning, Bool[np.ndarray, " n"]]:
        """A row per prompt of its conditioning and of the negative one, and whether both are finite."""
        if prompts not in self._encoded:
            conditioning = self.model.encode_prompts(prompts, self.sampling.clip_skip, adapters=self.adapters)
            # With all layers, as in `Model.generate`.
            negative = self.model.encode_prompts([self.sampling.negative_prompt] * len(prompts), adapters=self.adapters)
            self._encoded.clear()
            self._encoded[prompts] = conditioning, negative, finite_rows((conditioning, negative))
        return self._encoded[prompts]


def images_of_all_hosts(
    drawing: Drawing, prompts: Sequence[str], indices: np.ndarray, report: Callable[[int], object] = lambda _: None
) -> tuple[UInt8[np.ndarray, "n height width 3"], Bool[np.ndarray, " n"]]:
    """`Drawing.images`, a share of them drawn by each host; `report` gets the number of images drawn."""

    def draw(rows: np.ndarray) -> dict[str, np.ndarray]:
        texts = [prompts[row] for row in rows]
        images, usable = drawing.images(texts, indices[rows], lambda drawn: report(drawn * hosts.count()))
        return {"images": images, "usable": usable}

    drawn = hosts.divide(draw, len(prompts))
    return drawn["images"], drawn["usable"]


def drawing_of(
    experiment: Experiment, model: Model, adapters: Adapters = (), latent_normalization: bool = False
) -> Drawing:
    """How an experiment draws with a model and adapters."""
    batch = experiment.pool.device_batch
    return Drawing(model, experiment.sampling, experiment.seed, batch, adapters, latent_normalization)


def drawing_settings(experiment: Experiment) -> dict:
    """What decides the image of a prompt and an image index, and so names the pool."""
    return {
        **base_fingerprints(experiment),
        "seed": experiment.seed,
        **sampling_settings(experiment),
    }


def sampling_settings(experiment: Experiment) -> dict:
    """What decides, besides weights, prompt and noise, how the images of the pool and of evaluations are drawn."""
    return {
        "sampler.revision": dpm_solver.REVISION,
        "dtype": experiment.dtype,
        "attention": experiment.attention,
        **flat({"pool": decisive(experiment.sampling)}),
    }


def complete_pool(experiment: Experiment, run: StageRun) -> tuple[Pool, list[Block]]:
    """The pool and its blocks, with all images that were missing drawn, a share of them by each host."""
    pool, blocks = pool_of(experiment, run)
    draw = functools.partial(_draw, experiment, pool)
    while pool.latents.make_missing(blocks, experiment.pool.size, draw):
        pass
    return pool, blocks


def pool_of(experiment: Experiment, run: StageRun) -> tuple[Pool, list[Block]]:
    """The pool, drawn or not, and its blocks."""
    pool = Pool(run.pools / fingerprint_of(drawing_settings(experiment)))
    return pool, blocks_of(train_prompts(experiment), experiment.pool.block)


def batch_of_block(device_batch: int, block: int) -> int:
    """Rows at once per device: `device_batch`, or fewer where a whole block has fewer."""
    # Not of the rows at hand: one shape, so that one program serves all parts and a part's bytes are its own.
    return min(device_batch, -(-block // jax.local_device_count()))


def _draw(experiment: Experiment, pool: Pool, missing: Sequence[tuple[Block, int]], images: int) -> None:
    """Draws missing parts, this host's share; `images` is the share of the whole pool."""
    if hosts.is_first():
        write_json(pool.folder / "settings.json", drawing_settings(experiment))
    model = load_base(experiment)
    if hosts.is_first():
        warn_long_prompts(model.long_prompts([*train_prompts(experiment), experiment.pool.negative_prompt]))
    drawing = drawing_of(experiment, model)
    draw_parts(experiment, drawing, pool, missing, images, "generate_pool")


def draw_parts(
    experiment: Experiment,
    drawing: Drawing,
    pool: Pool,
    missing: Sequence[tuple[Block, int]],
    images: int,
    description: str,
) -> None:
    """Draws parts that are missing, with a progress bar.

    `images` is how many images this host is to have drawn when all is there.
    """
    device_batch = batch_of_block(drawing.device_batch, experiment.pool.block)
    drawing = dataclasses.replace(drawing, device_batch=device_batch)

    def keep(block: Block, index: int, latents: np.ndarray, text_finite: np.ndarray) -> None:
        stored = pool.latents.stored(latents)
        usable = finite_rows(stored)
        # An image whose latents are finite is usable even if its conditioning is not.
        values = {"text": usable | text_finite, "denoiser": usable}
        finite = {f"the values of {name_of(experiment, of)}": rows for of, rows in values.items()}
        # Not written where too many are unusable, so that they are drawn again once the device is repaired.
        unusable.add(finite, image_of(block.prompts, index))
        pool.latents.write(block, index, stored)

    with making(missing, images, description, experiment.pool.unusable_limit) as (bar, write, unusable):
        for block, index in missing:
            latents = drawing.latents(block.prompts, np.full(len(block.prompts), index), bar.update)
            write(keep, block, index, latents, drawing.conditioning_finite(block.prompts))
