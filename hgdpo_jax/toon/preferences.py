"""Pairs of portraits of which one is clearly better for a prompt: what the toon scorers learn from."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from hgdpo_jax.families.model import Model
from hgdpo_jax.toon.attributes import ATTRIBUTES
from hgdpo_jax.toon.captions import caption
from hgdpo_jax.toon.damage import damaged_many
from hgdpo_jax.toon.portraits import Portrait, portrait, render_many

_SEEDS_APART = 1_000_000
# Share of each kind of pair in a batch.
KINDS = {"damaged": 0.2, "altered": 0.45, "mismatch": 0.05, "weak": 0.1, "swapped": 0.2}
# Strongest noise on the latents of both pictures of an altered pair; a latent's own standard deviation is 1.
_ROUGHEST = 0.5


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Pictures in sets of one row a prompt: row i of every set belongs to prompt i.

    `intact` is the portrait of the prompt, `damaged` the same with damaged anatomy or picture. `faithful` shows it as
    rough as a model's pictures are, and `altered`, with the same roughness, a person with one or two other attributes:
    from clean portraits a scorer learns to read attributes in clean ones only. `samples` are drawn by the base and
    `weak` by earlier checkpoints of it, for the first rows only. Every picture went through the autoencoder, or a
    scorer would learn to see the decoder.
    """

    prompts: list[str]
    intact: np.ndarray
    damaged: np.ndarray
    faithful: np.ndarray
    altered: np.ndarray
    samples: np.ndarray
    weak: np.ndarray

    def pair(self, kind: str, random: np.random.Generator) -> tuple[int, np.ndarray, np.ndarray]:
        """A random pair of one kind: the prompt's row, the better and the worse picture, uint8."""
        row = int(random.integers(len(self.prompts)))
        if kind == "damaged":
            return row, self.intact[row], self.damaged[row]
        if kind == "altered":
            return row, self.faithful[row], self.altered[row]
        if kind == "mismatch":
            return row, self.intact[row], self.intact[self._other(row, len(self.intact), random)]
        row = int(random.integers(len(self.samples)))
        if kind == "weak":
            return row, (self.samples, self.intact)[int(random.integers(2))][row], self.weak[row]
        return row, self.samples[row], self.samples[self._other(row, len(self.samples), random)]

    @staticmethod
    def _other(row: int, count: int, random: np.random.Generator) -> int:
        return (row + int(random.integers(1, count))) % count


def altered(person: Portrait, random: np.random.Generator) -> Portrait:
    """The portrait with one or two attributes of another class."""
    names = random.choice(list(ATTRIBUTES), size=int(random.integers(1, 3)), replace=False)
    changes: dict[str, Any] = {}
    for name in map(str, names):
        changes[name] = str(random.choice([other for other in ATTRIBUTES[name] if other != getattr(person, name)]))
    return dataclasses.replace(person, **changes)


def make_preferences(
    base: Model,
    weaker: Sequence[Model],
    *,
    split: str,
    first: int,
    count: int,
    samples: int,
    kinds: Sequence[str],
    seed: int,
    report=None,
) -> Preferences:
    """Renders and draws all pictures of `count` portraits from `first` on, `samples` of them also by the models."""
    random = np.random.default_rng((seed, first))
    people = [portrait(first + index, split) for index in range(count)]
    texts = [caption(person) for person in people]

    def through_autoencoder(pictures: np.ndarray) -> np.ndarray:
        return base.decode_latents(base.encode_images(pictures, 64), 64)

    def draw(model: Model, rows: np.ndarray) -> np.ndarray:
        shape = base.latent_shape(48, 64)
        noise = random.standard_normal((len(rows), *shape)).astype(np.float32)
        conditioning = (model.encode_prompts(prompts) for prompts in ([texts[row] for row in rows], [""] * len(rows)))
        latents = model.draw_latents(noise, *conditioning, steps=10, guidance=3.0, device_batch=50, report=report)
        return model.decode_latents(latents, 50)

    # Each row's weak sample comes from one of the weaker models.
    weak = np.zeros((samples, 64, 48, 3), np.uint8)
    for i, model in enumerate(weaker):
        rows = np.arange(i, samples, len(weaker))
        if len(rows):
            weak[rows] = draw(model, rows)
    whole = base.encode_images(render_many(people), 64)
    other = base.encode_images(render_many([altered(person, random) for person in people]), 64)
    strength = random.uniform(0, _ROUGHEST, size=(count, 1, 1, 1))
    roughness = (strength * random.standard_normal(whole.shape)).astype(np.float32)
    broken = damaged_many(people, kinds, [seed * _SEEDS_APART + first + i for i in range(count)])
    return Preferences(
        prompts=texts,
        intact=base.decode_latents(whole, 64),
        damaged=through_autoencoder(broken),
        faithful=base.decode_latents(whole + roughness, 64),
        altered=base.decode_latents(other + roughness, 64),
        samples=draw(base, np.arange(samples)) if samples else weak,
        weak=weak,
    )
