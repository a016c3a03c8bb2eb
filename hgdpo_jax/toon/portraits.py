"""Procedural portraits: a portrait is a pure function of its split and index, and a picture of its portrait."""

import dataclasses
import functools
import hashlib
import importlib.resources
import io
import json
import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from PIL import Image

from hgdpo_jax.errors import UserError
from hgdpo_jax.toon import attributes

try:
    import resvg_py
    from dicebear import Avatar, Style
except ModuleNotFoundError as error:
    raise UserError(
        f"toon portraits need {error.name}, which is not installed: pip install 'hgdpo_jax[toon]'"
    ) from error

WIDTH, HEIGHT = 48, 64
SPLITS = ("train", "validation", "test")
# Of 20 hash values of a combination, validation owns the first and test the next two.
_SPLIT_OF_BUCKET = ("validation", "test", "test") + ("train",) * 17
# The style's mouth is two pixels high at 48x64 and a smile hard to tell from a frown: drawn larger.
_MOUTH_SCALE = {
    "smiling": (2.0, 3.0),
    "laughing": (1.6, 1.6),
    "surprised": (1.9, 1.6),
    "sad": (2.0, 3.0),
    "angry": (1.6, 1.6),
}
_BACK_TO_FRONT = ("rearHair", "body", "head", "clothes", "beard", "mouth", "eyes", "eyebrows", "hair")
# Centres of the parts on the style's canvas.
_CENTERS = {
    "rearHair": (386, 547),
    "body": (384, 719),
    "head": (384, 365),
    "clothes": (388, 678),
    "beard": (383, 549),
    "mouth": (384, 513),
    "eyes": (384, 404),
    "eyebrows": (385, 334),
    "hair": (389, 306),
}
# Processes cost a second to start, as much as rendering a few hundred pictures.
_PICTURES_WORTH_PROCESSES = 2000


@dataclasses.dataclass(frozen=True)
class Portrait:
    """One person: the class name of every attribute, the framing, and which wording its caption has."""

    hair_color: str
    hair_style: str
    skin: str
    clothes_color: str
    background: str
    beard: str
    mouth: str
    eyes: str
    framing: str
    caption_variant: int

    @property
    def combination(self) -> tuple[str, ...]:
        """The classes whose combination decides the split."""
        return tuple(getattr(self, name) for name in attributes.COMBINATION)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A portrait as SVG: shared definitions, the parts from back to front, and the visible part of the canvas."""

    definitions: str
    parts: tuple[tuple[str, str], ...]
    background: str
    view: tuple[float, float, float, float]

    @property
    def part_names(self) -> tuple[str, ...]:
        """Which parts this portrait has, from back to front."""
        return tuple(name for name, _ in self.parts)

    def replace(self, names: Sequence[str], new_markup: Callable[[str], str]) -> "Drawing":
        """Returns the drawing with the markup of the named parts replaced by a function of it."""
        parts = tuple((name, new_markup(markup) if name in names else markup) for name, markup in self.parts)
        return dataclasses.replace(self, parts=parts)

    def rasterize(self) -> np.ndarray:
        """Returns the picture, uint8 [64, 48, 3]."""
        body = "".join(markup for _, markup in self.parts)
        view = " ".join(f"{number:g}" for number in self.view)
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" fill="none">{self.definitions}{body}</svg>'
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=WIDTH, height=HEIGHT, background=self.background, skip_system_fonts=True
        )
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def moved(
    markup: str, part: str, shift: tuple[float, float] = (0, 0), degrees: float = 0, scale: tuple[float, float] = (1, 1)
) -> str:
    """Returns a part's markup scaled and turned about the part's centre, then shifted (canvas units)."""
    x, y = _CENTERS[part]
    transform = (
        f"translate({shift[0] + x:.2f} {shift[1] + y:.2f}) rotate({degrees:.2f}) "
        f"scale({scale[0]:.3f} {scale[1]:.3f}) translate({-x} {-y})"
    )
    return f'<g transform="{transform}">{markup}</g>'


def split_of(combination: tuple[str, ...]) -> str:
    """Returns the only split in which portraits of this combination of classes occur."""
    digest = hashlib.sha256("/".join(combination).encode()).digest()
    return _SPLIT_OF_BUCKET[int.from_bytes(digest[:8], "big") % len(_SPLIT_OF_BUCKET)]


@functools.cache
def combinations(split: str) -> tuple[tuple[str, ...], ...]:
    """Returns every combination of the split, in a fixed order."""
    if split not in SPLITS:
        raise UserError(f"toon split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    tables = [attributes.ATTRIBUTES[name] for name in attributes.COMBINATION]
    grid = np.stack(np.meshgrid(*map(np.arange, map(len, tables)), indexing="ij"), axis=-1).reshape(-1, len(tables))
    named = (tuple(table[i] for table, i in zip(tables, row, strict=True)) for row in grid)
    return tuple(combination for combination in named if split_of(combination) == split)


def portrait(index: int, split: str) -> Portrait:
    """Returns portrait `index` of a split ("train", "validation" or "test"); any index >= 0 exists."""
    choices = combinations(split)
    random = np.random.default_rng((SPLITS.index(split), index))
    classes = dict(zip(attributes.COMBINATION, choices[random.integers(len(choices))], strict=True))
    return Portrait(
        **classes,
        hair_style=str(random.choice(attributes.ATTRIBUTES["hair_style"])),
        beard=str(random.choice(attributes.ATTRIBUTES["beard"], p=(0.46, 0.18, 0.18, 0.18))),
        mouth=str(random.choice(attributes.ATTRIBUTES["mouth"])),
        eyes=str(random.choice(attributes.ATTRIBUTES["eyes"], p=(0.6, 0.2, 0.2))),
        framing=str(random.choice(tuple(attributes.FRAMING))),
        caption_variant=int(random.integers(1 << 30)),
    )


def labels(person: Portrait) -> dict[str, int]:
    """Returns the class index of every attribute in ATTRIBUTES."""
    return {name: classes.index(getattr(person, name)) for name, classes in attributes.ATTRIBUTES.items()}


@functools.cache
def _style() -> Style:
    definition = importlib.resources.files("dicebear_styles").joinpath("toon-head.json").read_text("utf-8")
    return Style(json.loads(definition))


@functools.lru_cache(maxsize=1024)
def drawing(person: Portrait) -> Drawing:
    """Returns the portrait as SVG parts named rearHair, body, head, clothes, beard, mouth, eyes, eyebrows, hair."""
    front_hair, rear_hair = attributes.HAIR_STYLE[person.hair_style]
    beard = attributes.BEARD[person.beard]
    mouth, eyebrows = attributes.MOUTH[person.mouth]
    options = {
        "hairColor": [attributes.HAIR_COLOR[person.hair_color]],
        "skinColor": [attributes.SKIN[person.skin]],
        "clothesColor": [attributes.CLOTHES_COLOR[person.clothes_color]],
        "clothesVariant": "tShirt",
        "hairVariant": front_hair,
        "rearHairVariant": rear_hair or "longWavy",
        "rearHairProbability": 100 if rear_hair else 0,
        "beardVariant": beard or "fullBeard",
        "beardProbability": 100 if beard else 0,
        "mouthVariant": mouth,
        "eyebrowsVariant": eyebrows,
        "eyesVariant": attributes.EYES[person.eyes],
    }
    svg = Avatar(_style(), {"seed": "toon", **options}).to_string()
    definitions = re.search(r"<defs>.*</defs>", svg, re.DOTALL)
    assert definitions is not None
    parts = tuple((use[1], use[0]) for use in re.finditer(r'<use[^>]* href="#(\w+)-[^>]*/>', svg))
    height, shift, top = attributes.FRAMING[person.framing]
    width = height * WIDTH / HEIGHT
    view = (384 - shift - width / 2, top, width, height)
    if person.beard in ("beard", "long beard"):
        # In front of the beard, or a bearded person's expression is invisible.
        parts = tuple(sorted(parts, key=lambda part: _BACK_TO_FRONT.index(part[0])))
    if person.beard == "moustache":
        # Off the lips, or it hides a smile.
        parts = tuple((name, moved(use, name, shift=(0, -14)) if name == "beard" else use) for name, use in parts)
    drawn = Drawing(definitions[0], parts, attributes.BACKGROUND[person.background], view)
    return drawn.replace(["mouth"], lambda markup: moved(markup, "mouth", scale=_MOUTH_SCALE[person.mouth]))


@functools.lru_cache(maxsize=1024)
def render(person: Portrait) -> np.ndarray:
    """Returns the picture of a portrait, uint8 [64, 48, 3], read-only."""
    return drawing(person).rasterize()


def render_many(people: Sequence[Portrait]) -> np.ndarray:
    """Returns the pictures of n portraits, uint8 [n, 64, 48, 3], on all cores when n is large."""
    return stack_in_processes(render, people)


def stack_in_processes(picture: Callable[..., np.ndarray], *arguments: Sequence) -> np.ndarray:
    """Returns the stacked pictures that a module-level function makes of each item, on all cores when many."""
    if len(arguments[0]) < _PICTURES_WORTH_PROCESSES:
        pictures = list(map(picture, *arguments))
    else:
        # Spawned, not forked: the parent holds JAX's threads.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as executor:
            pictures = list(executor.map(picture, *arguments, chunksize=256))
    return np.stack(pictures) if pictures else np.zeros((0, HEIGHT, WIDTH, 3), np.uint8)
