"""A folder of captioned images, in the "imagefolder" convention of Hugging Face datasets.

    FOLDER/metadata.jsonl    {"file_name": "people/0001.jpg", "text": "a woman in the rain"}, one line an image
    FOLDER/metadata.csv      or a table with these columns, or metadata.parquet

The first of these tables that is there counts.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from hgdpo_jax.artifacts import fingerprint_of
from hgdpo_jax.data.prompt_tables import table_rows, text_of
from hgdpo_jax.errors import UserError, first_line
from hgdpo_jax.files import expanded, leads_out
from hgdpo_jax.weights.conversion import some

_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TABLE_NAMES = f"{', '.join(_TABLES[:-1])} or {_TABLES[-1]}"
_NAME_COLUMN = "file_name"
# Opening a file waits for the disk, or for an object store, and hardly ever computes.
_THREADS = 32
# What turns an image upright, by its EXIF orientation; those from 5 on lie on their side.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = range(5, 9)
# 16,384 x 16,384, which takes 1 GiB while it is decoded, on each thread. Pillow's own limit of 179 million pixels keeps
# out scans and panoramas, and from half of it on Pillow warns.
_MOST_PIXELS = 1 << 28
Image.MAX_IMAGE_PIXELS = None
# Programs that draw images keep their whole workflow in a PNG's text, of which Pillow takes 1 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Images by their number in the table, each with its caption; nothing of an image is kept in memory."""

    folder: epath.Path
    names: tuple[str, ...]
    captions: tuple[str, ...]

    @classmethod
    def open(cls, folder: epath.PathLike, caption_column: str) -> "ImageFolder":
        """Reads the table of a folder; raises UserError where it, a column of it, or an image's name is missing."""
        folder = expanded(folder)
        if not folder.is_dir():
            raise UserError(f"image folder {str(folder)!r} does not exist, expected a folder with {_TABLE_NAMES}")
        table = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
        if table is None:
            raise UserError(
                f"image folder {folder} has no {_TABLE_NAMES}, expected one with the columns "
                f"{_NAME_COLUMN} and {caption_column}"
            )
        rows = table_rows(table, {_NAME_COLUMN, caption_column})
        columns = list(dict.fromkeys(name for _, row in rows for name in row))
        if not rows:
            raise UserError(
                f"{table} is empty, expected the columns {_NAME_COLUMN} and {caption_column}, a row an image"
            )
        if _NAME_COLUMN not in columns:
            raise UserError(f"{table} has no column {_NAME_COLUMN!r}, expected it beside {some(columns)}")
        if caption_column not in columns:
            raise UserError(
                f"{table} has no column {caption_column!r}, "
                f"expected finetune.caption_column to be one of {some([c for c in columns if c != _NAME_COLUMN])}"
            )
        names = tuple(text_of(table, row, _NAME_COLUMN) for row in rows)
        if "" in names:
            raise UserError(f"{rows[names.index('')][0]} of {table} has no {_NAME_COLUMN}, expected an image's path")
        if outside := next((row for row, name in zip(rows, names, strict=True) if leads_out(name)), None):
            raise UserError(
                f"{outside[0]} of {table} names {outside[1][_NAME_COLUMN]!r}, which leads out of the folder: put the "
                "image into it, and give its path from there"
            )
        captions = tuple(text_of(table, row, caption_column).strip() for row in rows)
        if not any(captions):
            raise UserError(f"{table} has no text in its column {caption_column!r}, expected captions")
        return cls(folder, names, captions)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Names the images by their names and captions."""
        # Not by their content: to read it, hundreds of gigabytes, would take longer than many a run.
        return fingerprint_of({"names": self.names, "captions": self.captions})

    def require_images(self, width: int, height: int, report: Callable[[], object] = lambda: None) -> None:
        """Opens every file as far as its size; raises UserError where some are missing or cannot be used.

        Images smaller than `width` x `height`, and those without a caption, are counted on the error stream. `report`
        is called for every image.
        """
        absent, unreadable, small = [], [], []
        with ThreadPoolExecutor(_THREADS) as threads:
            for name, found in zip(self.names, threads.map(self._size, self.names), strict=True):
                if found is None:
                    absent.append(name)
                elif isinstance(found, Exception):
                    unreadable.append(f"{name} ({first_line(found)})")
                elif found[0] < width or found[1] < height:
                    small.append(f"{name} ({found[0]}x{found[1]})")
                report()
        if absent:
            raise UserError(
                f"{self.folder} lacks {some(absent)}, which its table names: add them, or remove their rows"
            )
        if unreadable:
            raise UserError(
                f"{self.folder} has images that cannot be used, {some(unreadable)}: replace them, or remove their rows"
            )
        if small:
            _warn(
                f"{len(small):,} of {len(self):,} images are smaller than {width}x{height} and enlarged: {some(small)}"
            )
        if empty := self.captions.count(""):
            _warn(f"{empty:,} of {len(self):,} images have no caption and train the empty prompt")

    def image(self, row: int, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
        """An image upright, its transparent parts white, resized to cover `width` x `height` and cropped to its centre.

        Raises UserError where it cannot be decoded.
        """
        path = self.folder / self.names[row]
        try:
            with _opened(path) as opened:
                black, white = _range_of(opened)
                opened.load()
                turn = _UPRIGHT.get(_orientation(opened) or 1)
                upright = _in_eight_bits(opened if turn is None else opened.transpose(turn), black, white)
                return np.asarray(ImageOps.fit(_on_white(upright), (width, height), Image.Resampling.LANCZOS), np.uint8)
        # Pillow's readers raise nearly anything on a broken file.
        except Exception as error:
            raise UserError(
                f"{path} cannot be decoded ({first_line(error)}): put a whole image in its place and run again; what "
                "is encoded is kept"
            ) from error

    def _size(self, name: str) -> tuple[int, int] | Exception | None:
        """Width and height of an upright image, None where there is no file, or what went wrong."""
        try:
            with _opened(self.folder / name) as opened:
                _range_of(opened)
                width, height = opened.size
                # Pillow gives a TIFF's size upright.
                turned = _orientation(opened) in _TURNED and opened.format != "TIFF"
                return (height, width) if turned else (width, height)
        except FileNotFoundError:
            return None
        except Exception as error:
            return error


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Image.Image]:
    """An image as far as its header; raises ValueError, with the reason, where that is no image or too large."""
    with path.open("rb") as file:
        try:
            opened = Image.open(file)
        except UnidentifiedImageError as error:
            raise ValueError(_reason(file)) from error
        with opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError(
                    f"{opened.width}x{opened.height} pixels, expected at most {_MOST_PIXELS / 1e6:.0f} million"
                )
            yield opened


def _reason(file: IO[bytes]) -> str:
    """Why a file is no image; Pillow does not pass on what its readers say."""
    file.seek(0)
    if not (start := file.read(16)):
        return "an empty file"
    for name, (reader, accepts) in Image.OPEN.items():
        if accepts and (answer := accepts(start)):
            if isinstance(answer, str):
                return answer
            try:
                file.seek(0)
                reader(file, "")
            except Exception as error:
                return f"{name}: {first_line(error)}"
    return f"no image, begins with {start!r}"


def _orientation(image: Image.Image) -> int | None:
    """How EXIF says that an image is turned; None where it says nothing, or is broken."""
    try:
        # Not the PNG reader's own method, which decodes the whole image.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:
        return None


def _range_of(opened: Image.Image) -> tuple[int, int]:
    """The values of black and white in an image's file; raises ValueError where it does not say them."""
    if opened.mode.startswith("I;16"):
        tags = getattr(opened, "tag_v2", {})
        white = (1 << tags.get(ExifTags.Base.BitsPerSample, (16,))[0]) - 1
        # A TIFF may count from white to black. Pillow turns that round in 8 bits only.
        return (white, 0) if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else (0, white)
    # Pillow scales netpbm's values to 16 bits. Other such files hold signed or 32-bit values: depths, measurements.
    if opened.mode == "I" and opened.format == "PPM":
        return 0, (1 << 16) - 1
    if opened.mode in ("I", "F"):
        raise ValueError(
            "its values are signed or of 32 bits, and nothing says which is white: save it with 8 or 16 bits"
        )
    return 0, 255


def _in_eight_bits(image: Image.Image, black: int, white: int) -> Image.Image:
    """The image with 0 as black and 255 as white; Pillow would clip values above 255."""
    if (black, white) == (0, 255):
        return image
    values = np.asarray(image)
    grey = Image.fromarray(np.round((values - np.float32(black)) * np.float32(255 / (white - black))).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    behind = Image.new("RGBA", image.size, "white")
    behind.alpha_composite(image.convert("RGBA"))
    return behind.convert("RGB")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
