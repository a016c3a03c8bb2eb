"""Procedural portraits: a portrait is a pure function of its split and index, and a picture of its portrait."""

import dataclasses
import functools
import hashlib
import importlib.resources
import io
import itertools
import json
import multiprocessing
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from PIL import Image

from hgdpo_jax.errors import UserError
from hgdpo_jax.toon.attributes import ATTRIBUTES, COMBINATION, DRAWN, FRAMING

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
        return tuple(getattr(self, name) for name in COMBINATION)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A portrait as SVG: shared definitions, the parts from back to front, and the visible part of the canvas."""

    definitions: str
    parts: tuple[tuple[str, str], ...]
    background: str
    view: tuple[float, float, float, float]

    def replace(self, names: Sequence[str], new_markup: Callable[[str], str]) -> "Drawing":
        """Returns the drawing with the markup of the named parts replaced by a function of it."""
        parts = tuple((name, new_markup(markup) if name in names else markup) for name, markup in self.parts)
        return dataclasses.replace(self, parts=parts)

    def move(
        self,
        names: Sequence[str],
        shift: tuple[float, float] = (0, 0),
        degrees: float = 0,
        scale: tuple[float, float] = (1, 1),
        about: str = "",
    ) -> "Drawing":
        """Returns the drawing with the named parts moved as by `moved`, about the centre of `about` or the first."""
        return self.replace(names, lambda markup: moved(markup, about or names[0], shift, degrees, scale))

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
        known = ", ".join(f"toon:{name}" for name in SPLITS)
        raise UserError(f"there are no prompts toon:{split}, expected one of {known}")
    grid = itertools.product(*(ATTRIBUTES[name] for name in COMBINATION))
    return tuple(combination for combination in grid if split_of(combination) == split)


def portrait(index: int, split: str) -> Portrait:
    """Returns portrait `index` of a split ("train", "validation" or "test"); any index >= 0 exists."""
    choices = combinations(split)
    random = np.random.default_rng((SPLITS.index(split), index))

    def pick(classes: Iterable[str], shares: Sequence[float] | None = None) -> str:
        return str(random.choice(tuple(classes), p=shares))

    return Portrait(
        **dict(zip(COMBINATION, choices[random.integers(len(choices))], strict=True)),
        hair_style=pick(ATTRIBUTES["hair_style"]),
        beard=pick(ATTRIBUTES["beard"], (0.46, 0.18, 0.18, 0.18)),
        mouth=pick(ATTRIBUTES["mouth"]),
        eyes=pick(ATTRIBUTES["eyes"], (0.6, 0.2, 0.2)),
        framing=pick(FRAMING),
        caption_variant=int(random.integers(1 << 30)),
    )


def labels(people: Sequence[Portrait]) -> np.ndarray:
    """Returns the class indices of n portraits `[n, attributes]`, in the order of ATTRIBUTES."""
    return np.array(
        [[classes.index(getattr(person, name)) for name, classes in ATTRIBUTES.items()] for person in people]
    )


@functools.cache
def _style() -> Style:
    definition = importlib.resources.files("dicebear_styles").joinpath("toon-head.json").read_text("utf-8")
    return Style(json.loads(definition))


@functools.lru_cache(maxsize=1024)
def drawing(person: Portrait) -> Drawing:
    """Returns the portrait as SVG parts named rearHair, body, head, clothes, beard, mouth, eyes, eyebrows, hair."""
    drawn = {name: classes[getattr(person, name)] for name, classes in DRAWN.items()}
    front_hair, rear_hair = drawn["hair_style"]
    mouth, eyebrows = drawn["mouth"]
    options = {
        "hairColor": [drawn["hair_color"]],
        "skinColor": [drawn["skin"]],
        "clothesColor": [drawn["clothes_color"]],
        "clothesVariant": "tShirt",
        "hairVariant": front_hair,
        "rearHairVariant": rear_hair or "longWavy",
        "rearHairProbability": 100 if rear_hair else 0,
        "beardVariant": drawn["beard"] or "fullBeard",
        "beardProbability": 100 if drawn["beard"] else 0,
        "mouthVariant": mouth,
        "eyebrowsVariant": eyebrows,
        "eyesVariant": drawn["eyes"],
    }
    svg = Avatar(_style(), {"seed": "toon", **options}).to_string()
    definitions = re.search(r"<defs>.*</defs>", svg, re.DOTALL)
    assert definitions is not None
    parts = tuple((use[1], use[0]) for use in re.finditer(r'<use[^>]* href="#(\w+)-[^>]*/>', svg))
    height, shift, top = FRAMING[person.framing]
    width = height * WIDTH / HEIGHT
    view = (384 - shift - width / 2, top, width, height)
    if person.beard in ("beard", "long beard"):
        # A mouth behind the beard would not be visible.
        parts = tuple(sorted(parts, key=lambda part: _BACK_TO_FRONT.index(part[0])))
    result = Drawing(definitions[0], parts, drawn["background"], view)
    if person.beard == "moustache":
        # On the lips it would hide a smile.
        result = result.move(["beard"], shift=(0, -14))
    return result.move(["mouth"], scale=_MOUTH_SCALE[person.mouth])


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
        # Spawned, not forked: the parent has JAX's threads.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as executor:
            pictures = list(executor.map(picture, *arguments, chunksize=256))
    return np.array(pictures, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
