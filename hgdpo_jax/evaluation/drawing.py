"""Images of the base and of the tuned model from the same noise, a chunk at a time."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8

from hgdpo_jax import hosts
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.random_keys import image_noise
from hgdpo_jax.sharding import data_mesh

# Of 704x1024 pixels that is 140 MB a model.
_CHUNK_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Images of some prompts: `prompts` and `seeds` say for each which prompt it shows and which image of it it is.

    `base_usable` and `tuned_usable` say whether the values of an image were finite.
    """

    prompts: Int[np.ndarray, " n"]
    seeds: Int[np.ndarray, " n"]
    base: UInt8[np.ndarray, "n height width 3"]
    tuned: UInt8[np.ndarray, "n height width 3"]
    base_usable: Bool[np.ndarray, " n"]
    tuned_usable: Bool[np.ndarray, " n"]


def draw_base_and_tuned(
    model: StableDiffusion,
    adapter: dict,
    scale: float,
    prompts: Sequence[str],
    seeds: int,
    *,
    seed: int,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    negative_prompt: str,
    clip_skip: int,
    latent_normalization: bool,
    device_batch: int,
    report: Callable[[int], object] | None = None,
) -> Iterator[Drawn]:
    """Draws `seeds` images of every prompt with both models, all images of the first prompt first.

    The noise is a function of `seed`, the prompt's text and the number of the image. `latent_normalization` holds for
    the tuned model; `report` receives the number of images drawn. Each host draws a share and gives all.
    """
    shape = model.latent_shape(width, height)
    batch = device_batch * data_mesh().size
    # Whole batches of every host, so that no row is drawn only to fill one up.
    chunk = hosts.count() * batch * max(1, _CHUNK_IMAGES // batch)
    for start in range(0, len(prompts) * seeds, chunk):
        prompt_of, seed_of = np.divmod(np.arange(start, min(start + chunk, len(prompts) * seeds)), seeds)

        def draw(rows, prompt_of=prompt_of, seed_of=seed_of):
            texts = [prompts[i] for i in prompt_of[rows]]
            noise = np.asarray(image_noise(seed, texts, seed_of[rows], shape))
            images = {}
            for name in ("base", "tuned"):
                latents = model.generate_latents(
                    texts,
                    noise,
                    # A scale of zero is the base, in the program that is compiled already.
                    [(adapter, jnp.float32(scale if name == "tuned" else 0.0))],
                    negative_prompts=[negative_prompt] * len(texts),
                    clip_skip=clip_skip,
                    steps=steps,
                    guidance=guidance,
                    latent_normalization=name == "tuned" and latent_normalization,
                    device_batch=device_batch,
                    report=lambda images: report and report(images * hosts.count()),
                )
                images[name], images[f"{name}_usable"] = model.decode_latents_checked(latents, device_batch)
            return images

        yield Drawn(prompt_of, seed_of, **hosts.divide(draw, len(prompt_of)))
