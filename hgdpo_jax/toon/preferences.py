"""Pairs of portraits of which one is clearly better for a prompt: what the toon scorers learn from."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hgdpo_jax.families.model import Model
from hgdpo_jax.run_log import progress
from hgdpo_jax.toon.attributes import ATTRIBUTES
from hgdpo_jax.toon.captions import caption
from hgdpo_jax.toon.damage import Fault, damaged_many
from hgdpo_jax.toon.portraits import HEIGHT, WIDTH, Portrait, portrait, render_many

_SEEDS_APART = 1_000_000
# Share of each kind of pair in a batch.
KINDS = {"damaged": 0.2, "altered": 0.45, "mismatch": 0.05, "weak": 0.1, "swapped": 0.2}
# Strongest noise on the latents of both pictures of an altered pair; a latent's own standard deviation is 1.
_ROUGHEST = 0.5


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Sets of pictures, one row per prompt: row i of every set belongs to prompt i.

    `intact` is the portrait of the prompt, `damaged` the same with faults. `faithful` is the portrait, as rough as a
    model's pictures are; `altered` is equally rough, but one or two attributes differ: from clean portraits a scorer
    would learn to read the attributes of clean ones only. `samples` are drawn by the base and `weak` by earlier
    checkpoints of it, for the first rows only. Every picture went through the autoencoder: otherwise a scorer would
    learn to recognise the decoder.
    """

    prompts: list[str]
    intact: np.ndarray
    damaged: np.ndarray
    faithful: np.ndarray
    altered: np.ndarray
    samples: np.ndarray
    weak: np.ndarray

    def draw(self, kinds: Iterable[str], random: np.random.Generator) -> tuple[list[int], np.ndarray, np.ndarray]:
        """A random pair of each kind: the rows of the prompts, the better and the worse pictures, uint8."""
        rows, better, worse = zip(*(self._pair(kind, random) for kind in kinds), strict=True)
        return list(rows), np.stack(better), np.stack(worse)

    def _pair(self, kind: str, random: np.random.Generator) -> tuple[int, np.ndarray, np.ndarray]:
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
    faults: Sequence[Fault],
    seed: int,
) -> Preferences:
    """Renders and draws all pictures of `count` portraits from `first` on, `samples` of them also by the models."""
    random = np.random.default_rng((seed, first))
    people = [portrait(first + index, split) for index in range(count)]
    texts = [caption(person) for person in people]

    def draw(model: Model, rows: np.ndarray) -> np.ndarray:
        noise = random.standard_normal((len(rows), *base.latent_shape(WIDTH, HEIGHT))).astype(np.float32)
        conditioning = (model.encode_prompts(prompts) for prompts in ([texts[row] for row in rows], [""] * len(rows)))
        with progress(total=len(rows), description="train_scorer: samples", unit="image") as bar:
            latents = model.draw_latents(
                noise, *conditioning, steps=10, guidance=3.0, device_batch=50, report=bar.update
            )
        return model.decode_latents(latents, 50)

    # Each row's weak sample comes from one of the weaker models.
    weak = np.zeros((samples, HEIGHT, WIDTH, 3), np.uint8)
    for i, model in enumerate(weaker):
        rows = np.arange(i, samples, len(weaker))
        if len(rows):
            weak[rows] = draw(model, rows)
    whole = base.encode_images(render_many(people), 64)
    other = base.encode_images(render_many([altered(person, random) for person in people]), 64)
    strength = random.uniform(0, _ROUGHEST, size=(count, 1, 1, 1))
    roughness = (strength * random.standard_normal(whole.shape)).astype(np.float32)
    broken = damaged_many(people, faults, [seed * _SEEDS_APART + first + i for i in range(count)])
    return Preferences(
        prompts=texts,
        intact=base.decode_latents(whole, 64),
        damaged=base.decode_latents(base.encode_images(broken, 64), 64),
        faithful=base.decode_latents(whole + roughness, 64),
        altered=base.decode_latents(other + roughness, 64),
        samples=draw(base, np.arange(samples)),
        weak=weak,
    )
