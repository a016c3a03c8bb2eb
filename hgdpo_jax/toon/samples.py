"""A sheet of a toon checkpoint's samples."""

import numpy as np

from hgdpo_jax.families.model import Model
from hgdpo_jax.pages.pictures import contact_sheet
from hgdpo_jax.random_keys import image_noise
from hgdpo_jax.toon.captions import prompts
from hgdpo_jax.toon.portraits import HEIGHT, WIDTH


def sample_sheet(model: Model, split: str, count: int, seed: int, enlarge: int) -> bytes:
    """A PNG of one image for each of the first `count` prompts of a split, in rows of eight."""
    texts = prompts(split, count)
    noise = np.asarray(image_noise(seed, texts, np.zeros(count, np.int32), model.latent_shape(WIDTH, HEIGHT)))
    images = model.generate(texts, 0, initial_latents=noise, steps=12, guidance=3.0, device_batch=count)
    return contact_sheet(images, columns=8, enlarge=enlarge)
