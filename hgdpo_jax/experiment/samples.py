"""Images of the base and of the tuned model from the same noise, a chunk at a time."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from hgdpo_jax import hosts
from hgdpo_jax.experiment.drawing import Drawing
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
    drawings: Mapping[str, Drawing],
    prompts: Sequence[str],
    seeds: int,
    report: Callable[[int], object] | None = None,
) -> Iterator[Drawn]:
    """Draws `seeds` images of every prompt by the drawings "base" and "tuned", all images of the first prompt first.

    `report` receives the number of images drawn. Each host draws a share and gives all.
    """
    batch = drawings["base"].device_batch * data_mesh().size
    # Whole batches of every host, so that no row is drawn only to fill one up.
    chunk = hosts.count() * batch * max(1, _CHUNK_IMAGES // batch)
    for start in range(0, len(prompts) * seeds, chunk):
        prompt_of, seed_of = np.divmod(np.arange(start, min(start + chunk, len(prompts) * seeds)), seeds)

        def draw(rows, prompt_of=prompt_of, seed_of=seed_of):
            texts, images = [prompts[i] for i in prompt_of[rows]], {}
            for name, drawing in drawings.items():
                images[name], images[f"{name}_usable"] = drawing.images(
                    texts, seed_of[rows], lambda images: report and report(images * hosts.count())
                )
            return images

        yield Drawn(prompt_of, seed_of, **hosts.divide(draw, len(prompt_of)))
