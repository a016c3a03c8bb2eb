"""Faulty portraits, in two families of faults that share none: one for the scorer, one for the held-out judge."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from hgdpo_jax.toon.portraits import (
    HEIGHT,
    WIDTH,
    Drawing,
    Portrait,
    drawing,
    moved,
    portrait,
    render,
    split_of,
    stack_in_processes,
)

_HEAD = ("head", "beard", "mouth", "eyes", "eyebrows", "hair")
_FACE = ("beard", "mouth", "eyes", "eyebrows")
_FEATURES = ("mouth", "eyes", "eyebrows")
# The second fault makes some pictures much worse than others: a scorer needs both near and far comparisons.
_TWO_FAULTS = 0.3
# Mean absolute change, in grey levels: a dark mouth that is moved on a dark face can be an invisible fault.
_LEAST_CHANGE = 0.6

# (drawing, random) -> drawing, or (picture, portrait, random) -> picture.
Fault = Callable[..., Any]


def _shift(random: np.random.Generator, least: float, most: float) -> tuple[float, float]:
    """Returns a shift of a random direction and a length between two bounds, in canvas units."""
    angle, length = random.uniform(0, 2 * np.pi), random.uniform(least, most)
    return length * np.cos(angle), length * np.sin(angle)


def _signed(random: np.random.Generator, least: float, most: float) -> float:
    return random.uniform(least, most) * random.choice((-1, 1))


def missing_part(drawn: Drawing, random: np.random.Generator) -> Drawing:
    part = random.choice(("mouth", "eyes", "hair", "clothes", "head"))
    return drawn.replace([part], lambda markup: "")


def displaced_feature(drawn: Drawing, random: np.random.Generator) -> Drawing:
    return drawn.move([random.choice(_FEATURES)], _shift(random, 35, 130))


def rotated_part(drawn: Drawing, random: np.random.Generator) -> Drawing:
    return drawn.move([random.choice((*_FEATURES, "hair"))], degrees=_signed(random, 25, 120))


def resized_part(drawn: Drawing, random: np.random.Generator) -> Drawing:
    part = random.choice(("mouth", "eyes", "head"))
    factor = random.choice((random.uniform(0.3, 0.65), random.uniform(1.6, 2.4)))
    if part == "head":
        factor = np.clip(factor, 0.35, 1.7)
    return drawn.move(_HEAD if part == "head" else [part], scale=(factor, factor))


def wrong_color_patches(drawn: Drawing, random: np.random.Generator) -> Drawing:
    patches = ""
    for _ in range(random.integers(1, 5)):
        x, y = random.uniform((220, 120), (550, 700))
        wide, high = random.uniform(30, 110, size=2)
        red, green, blue = random.integers(0, 256, size=3)
        patches += (
            f'<ellipse cx="{x:.0f}" cy="{y:.0f}" rx="{wide:.0f}" ry="{high:.0f}" '
            f'fill="rgb({red},{green},{blue})" fill-opacity="{random.uniform(0.5, 1):.2f}"/>'
        )
    return dataclasses.replace(drawn, parts=(*drawn.parts, ("patches", patches)))


def blur(picture: np.ndarray, person: Portrait, random: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(random.uniform(0.7, 2.5))))


def noise(picture: np.ndarray, person: Portrait, random: np.random.Generator) -> np.ndarray:
    grain = int(random.choice((1, 2, 4)))
    noise = random.normal(0, random.uniform(10, 55), size=(HEIGHT // grain, WIDTH // grain, 3))
    return np.clip(picture + noise.repeat(grain, axis=0).repeat(grain, axis=1), 0, 255).astype(np.uint8)


def doubled_part(drawn: Drawing, random: np.random.Generator) -> Drawing:
    part = random.choice(("mouth", "eyes", "hair", "head"))
    if part == "head":
        shift = (_signed(random, 60, 200), random.uniform(-60, 60))
        twin = "".join(moved(markup, "head", shift) for name, markup in drawn.parts if name in _HEAD)
        first = [name for name, _ in drawn.parts].index("head")
        return dataclasses.replace(drawn, parts=(*drawn.parts[:first], ("twin", twin), *drawn.parts[first:]))
    shift = _shift(random, 45, 150)
    return drawn.replace([part], lambda markup: markup + moved(markup, part, shift))


def displaced_hair(drawn: Drawing, random: np.random.Generator) -> Drawing:
    return drawn.move(["hair", "rearHair"], _shift(random, 50, 200))


def displaced_head(drawn: Drawing, random: np.random.Generator) -> Drawing:
    return drawn.move(_HEAD, (_signed(random, 50, 150), random.uniform(-90, 20)), _signed(random, 0, 60))


def turned_face(drawn: Drawing, random: np.random.Generator) -> Drawing:
    return drawn.move(_FACE, degrees=random.uniform(40, 320), about="head")


def uneven_eyes(drawn: Drawing, random: np.random.Generator) -> Drawing:
    fault = random.choice(("missing", "moved", "large"))
    shift, factor = _shift(random, 40, 110), random.uniform(1.5, 2.2)
    first, second = random.permutation((0, 384))

    def uneven(markup: str) -> str:
        good, bad = (
            f'<clipPath id="eye{left}"><rect x="{left}" width="384" height="768"/></clipPath>'
            f'<g clip-path="url(#eye{left})">{markup}</g>'
            for left in (first, second)
        )
        if fault == "missing":
            return good
        if fault == "moved":
            return good + moved(bad, "eyes", shift)
        return good + moved(bad, "eyes", scale=(factor, factor))

    return drawn.replace(["eyes"], uneven)


def smear(picture: np.ndarray, person: Portrait, random: np.random.Generator) -> np.ndarray:
    rows, columns = np.indices((HEIGHT, WIDTH))
    strength, period, phase = random.uniform(1.5, 5), random.uniform(8, 40), random.uniform(0, 2 * np.pi)
    across = strength * np.sin(2 * np.pi * rows / period + phase)
    down = strength * np.sin(2 * np.pi * columns / random.uniform(8, 40) + phase)
    rows = np.clip(np.rint(rows + down * random.integers(0, 2)), 0, HEIGHT - 1).astype(int)
    columns = np.clip(np.rint(columns + across), 0, WIDTH - 1).astype(int)
    return picture[rows, columns]


def _stranger(person: Portrait, random: np.random.Generator) -> np.ndarray:
    """Returns the picture of another person of the same split in the same framing."""
    other = portrait(int(random.integers(1 << 30)), split_of(person.combination))
    return render(dataclasses.replace(other, framing=person.framing))


def chimera(picture: np.ndarray, person: Portrait, random: np.random.Generator) -> np.ndarray:
    mixed = picture.copy()
    edge = random.uniform(0.35, 0.65)
    replaced = np.s_[:, : round(edge * WIDTH)] if random.integers(2) else np.s_[: round(edge * HEIGHT)]
    mixed[replaced] = _stranger(person, random)[replaced]
    return mixed


def ghost(picture: np.ndarray, person: Portrait, random: np.random.Generator) -> np.ndarray:
    weight = random.uniform(0.2, 0.5)
    return np.rint((1 - weight) * picture + weight * _stranger(person, random)).astype(np.uint8)


def color_fringes(picture: np.ndarray, person: Portrait, random: np.random.Generator) -> np.ndarray:
    shifts = [random.integers(1, 5) * random.choice((-1, 1)) for _ in range(2)]
    fringed = picture.copy()
    fringed[..., 0] = np.roll(picture[..., 0], shifts, axis=(0, 1))
    fringed[..., 2] = np.roll(picture[..., 2], [-shift for shift in shifts], axis=(0, 1))
    return fringed


def dropped_blocks(picture: np.ndarray, person: Portrait, random: np.random.Generator) -> np.ndarray:
    broken = picture.copy()
    for _ in range(random.integers(1, 6)):
        size = random.integers(6, 15)
        # Within the middle, where the person is: a dropped piece of background shows nothing.
        to = random.integers((6, 6), (HEIGHT - size - 4, WIDTH - size - 4))
        source = random.integers((0, 0), (HEIGHT - size, WIDTH - size))
        block = picture[source[0] : source[0] + size, source[1] : source[1] + size]
        broken[to[0] : to[0] + size, to[1] : to[1] + size] = block if random.integers(2) else 127
    return broken


# The names are those that scorer_training.damage takes.
FAMILIES: dict[str, tuple[Fault, ...]] = {
    "SCORER_DAMAGE": (
        missing_part,
        displaced_feature,
        rotated_part,
        resized_part,
        wrong_color_patches,
        blur,
        noise,
    ),
    "JUDGE_DAMAGE": (
        doubled_part,
        displaced_hair,
        displaced_head,
        turned_face,
        uneven_eyes,
        smear,
        chimera,
        ghost,
        color_fringes,
        dropped_blocks,
    ),
}
_OF_PICTURES = {blur, noise, smear, chimera, ghost, color_fringes, dropped_blocks}


def damaged(person: Portrait, faults: Sequence[Fault], seed: int) -> np.ndarray:
    """Returns the portrait with one or two of `faults`, drawn from the seed, as uint8 [64, 48, 3]."""
    random = np.random.default_rng((seed, person.caption_variant))
    intact = render(person).astype(np.float32)
    while True:
        picture = _with_faults(person, faults, random)
        if np.abs(picture - intact).mean() >= _LEAST_CHANGE:
            return picture


def damaged_many(people: Sequence[Portrait], faults: Sequence[Fault], seeds: Sequence[int]) -> np.ndarray:
    """Returns `damaged` for n portraits and their seeds, uint8 [n, 64, 48, 3], on all cores when n is large."""
    return stack_in_processes(damaged, people, [faults] * len(people), seeds)


def _with_faults(person: Portrait, faults: Sequence[Fault], random: np.random.Generator) -> np.ndarray:
    count = 2 if len(faults) > 1 and random.random() < _TWO_FAULTS else 1
    chosen = [faults[i] for i in random.choice(len(faults), count, replace=False)]
    drawn = drawing(person)
    for fault in chosen:
        if fault not in _OF_PICTURES:
            drawn = fault(drawn, random)
    picture = drawn.rasterize()
    for fault in chosen:
        if fault in _OF_PICTURES:
            picture = fault(picture, person, random)
    return picture
