"""Pictures for people: images at a readable size, contact sheets, and grids of pairs."""

import base64
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from einops import rearrange
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from hgdpo_jax.pages.charts import PALETTE
from hgdpo_jax.pages.numbers import format_score, ordinal

SHOWN, RANKED = "shown.json", "ranked.json"
_BAND = 8


@dataclasses.dataclass(frozen=True)
class ImagePair:
    """Two uint8 images [height, width, 3] of one prompt, and the scores by name of each."""

    prompt: str
    images: Sequence[np.ndarray]
    scores: Sequence[Mapping[str, float]] = ({}, {})


@dataclasses.dataclass(frozen=True)
class RankedImages:
    """Pictures of one prompt's pool, files, with their ranks and scores."""

    prompt: str
    ranks: Sequence[int]
    scores: Sequence[float]
    pictures: Sequence[epath.Path]

    @property
    def labels(self) -> list[str]:
        """Rank and score of each picture."""
        return [f"{ordinal(rank)}, {format_score(score)}" for rank, score in zip(self.ranks, self.scores, strict=True)]


def read_ranked(folder: epath.Path) -> list[RankedImages]:
    """The pictures that `select_pairs` shows by rank, the highest score first."""
    rows = json.loads((folder / RANKED).read_text())
    return [RankedImages(**row | {"pictures": [folder / name for name in row["pictures"]]}) for row in rows]


def read_shown_pairs(folder: epath.Path) -> dict[str, list[ImagePair]]:
    """The pairs that `check_pairs` shows, winner first: those whose scores differ most ("best") and least ("worst")."""

    def read(pair: dict) -> ImagePair:
        sides = [pair["winner"], pair["loser"]]
        images = [read_image(folder / side["image"]) for side in sides]
        return ImagePair(pair["prompt"], images, [side["scores"] for side in sides])

    shown = json.loads((folder / SHOWN).read_text())
    return {kind: [read(pair) for pair in pairs] for kind, pairs in shown.items()}


def resize_for_display(image: np.ndarray, height: int) -> Image.Image:
    """A uint8 image [h, w, 3] near `height` pixels high: enlarged by an integer factor, or reduced to that height.

    Lanczos both ways: drawn portraits of few pixels look like drawings, not like blocks.
    """
    picture = Image.fromarray(np.asarray(image, np.uint8))
    if picture.height > height:
        size = (max(1, round(picture.width * height / picture.height)), height)
    else:
        factor = max(1, height // picture.height)
        size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.LANCZOS)


def read_image(path: epath.Path) -> np.ndarray:
    """A picture file as uint8 [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def png_bytes(picture: np.ndarray | Image.Image) -> bytes:
    """A picture, or a uint8 image [height, width, 3], as a PNG file."""
    stream = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def webp_bytes(image: np.ndarray, height: int) -> bytes:
    """The image, resized for display, as a WebP file."""
    stream = io.BytesIO()
    resize_for_display(image, height).save(stream, "WEBP", quality=88, method=6)
    return stream.getvalue()


def data_uri(image: np.ndarray, height: int) -> str:
    """The image, resized for display, as a WebP data URI."""
    return _uri(webp_bytes(image, height))


def file_uri(path: epath.Path, height: int) -> str:
    """A picture file as a WebP data URI: WebP as it is, because it was resized for display; others resized."""
    return _uri(path.read_bytes()) if path.suffix == ".webp" else data_uri(read_image(path), height)


def _uri(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def contact_sheet(images: np.ndarray, columns: int, enlarge: int = 1) -> bytes:
    """A PNG of pictures uint8 [n, h, w, 3] in rows of `columns`, each enlarged by an integer factor."""
    count = -len(images) % columns
    filled = np.concatenate([images, np.full((count, *images.shape[1:]), 255, np.uint8)])
    sheet = Image.fromarray(rearrange(filled, "(r c) h w rgb -> (r h) (c w) rgb", c=columns))
    return png_bytes(sheet.resize((sheet.width * enlarge, sheet.height * enlarge), Image.Resampling.BICUBIC))


def pair_grid(pairs: Sequence[ImagePair], labels: Sequence[str], score: str, height: int = 192) -> bytes:
    """A PNG in bands of eight columns, one per pair: the first image above the second, each with its `score`.

    There must be a pair.
    """
    tiles = [[resize_for_display(image, height) for image in pair.images] for pair in pairs]
    width, height = tiles[0][0].size
    gap, score_height, line_height, prompt_lines = 12, 20, 15, 5
    bold, regular = _font("DejaVuSans-Bold", 13), _font("DejaVuSans", 12)
    label_width = gap + round(max(bold.getlength(label) for label in labels))
    row_height = height + score_height + gap // 2
    band_height = gap + 2 * row_height + prompt_lines * line_height + gap
    columns, bands = min(_BAND, len(pairs)), -(-len(pairs) // _BAND)
    canvas = Image.new("RGB", (gap + label_width + columns * (width + gap), bands * band_height), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (pair, images) in enumerate(zip(pairs, tiles, strict=True)):
        band, column = divmod(index, _BAND)
        left = gap + label_width + column * (width + gap)
        tops = [gap + band * band_height + row * row_height for row in range(3)]
        scores = [of_image.get(score) for of_image in pair.scores]
        best = max((value for value in scores if value is not None), default=None)
        for image, label, value, top in zip(images, labels, scores, tops, strict=False):
            canvas.paste(image, (left, top))
            if column == 0:
                draw.text((gap, top + height / 2), label, PALETTE["ink"], bold, anchor="lm")
            if value is not None:
                color = PALETTE["series-1" if value == best else "muted"]
                place = (left + width / 2, top + height + score_height / 2)
                draw.text(place, format_score(value), color, regular, anchor="mm")
        for line, text in enumerate(_wrap(pair.prompt, regular, width, prompt_lines)):
            draw.text((left, tops[2] + line * line_height), text, PALETTE["muted"], regular)
    return png_bytes(canvas)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships this font, so a grid looks the same on every machine.
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf", size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """The text broken into lines of at most `width` pixels, with an ellipsis if it was cut."""
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if wrapped[-1] and font.getlength(longer) > width:
            wrapped.append(word)
        else:
            wrapped[-1] = longer
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + " …"]
    return wrapped
