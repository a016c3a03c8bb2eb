"""A folder of captioned images, in the "imagefolder" convention of Hugging Face datasets.

    FOLDER/metadata.jsonl    {"file_name": "people/0001.jpg", "text": "a woman in the rain"}, one line an image
    FOLDER/metadata.csv      or a table with these columns, or metadata.parquet

The first of these tables that exists is read.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from hgdpo_jax.artifacts import fingerprint_of
from hgdpo_jax.data.prompt_tables import table_rows, text_of
from hgdpo_jax.errors import UserError, first_line, warn
from hgdpo_jax.files import expanded, leads_out, similar
from hgdpo_jax.texts import some

_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TABLE_NAMES = "metadata.jsonl, metadata.csv or metadata.parquet"
_NAME_COLUMN = "file_name"
# Threads that open files mostly wait for the disk or an object store.
_THREADS = 32
# The transpositions that turn an image upright, by its EXIF orientation; from 5 on they swap width and height.
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
# 16,384 x 16,384, which takes 1 GiB per thread while it is decoded. Pillow's own limit of 179 million pixels excludes
# scans and panoramas, and Pillow warns from half of it on.
_MOST_PIXELS = 1 << 28
Image.MAX_IMAGE_PIXELS = None
# Programs that draw images store their whole workflow in a PNG's text, of which Pillow accepts 1 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Images by their row in the table, each with its caption; no image is kept in memory."""

    folder: epath.Path
    names: tuple[str, ...]
    captions: tuple[str, ...]

    @classmethod
    def open(cls, folder: epath.PathLike, caption_column: str) -> "ImageFolder":
        """Reads the table of a folder; raises UserError if it, one of its columns, or an image's name is missing."""
        folder = expanded(folder)
        if not folder.is_dir():
            hint = (
                f": did you mean {near}?" if (near := similar(folder)) else f", expected a folder with {_TABLE_NAMES}"
            )
            raise UserError(f"image folder {str(folder)!r} does not exist{hint}")
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
                f"{table} is empty, expected the columns {_NAME_COLUMN} and {caption_column}, one row per image"
            )
        if _NAME_COLUMN not in columns:
            raise UserError(f"{table} has no column {_NAME_COLUMN!r}, expected it beside {some(columns)}")
        if caption_column not in columns:
            raise UserError(
                f"{table} has no column {caption_column!r}, expected config.finetune.caption_column to be one of "
                f"{some([c for c in columns if c != _NAME_COLUMN])}"
            )
        names = []
        for row in rows:
            names.append(name := text_of(table, row, _NAME_COLUMN))
            if not name:
                raise UserError(f"{row[0]} of {table} has no {_NAME_COLUMN}, expected an image's path")
            if leads_out(name):
                raise UserError(
                    f"{row[0]} of {table} names {name!r}, which leads out of the folder: put the image into it, and "
                    "give its path from there"
                )
        captions = tuple(text_of(table, row, caption_column).strip() for row in rows)
        if not any(captions):
            raise UserError(f"{table} has no text in its column {caption_column!r}, expected captions")
        return cls(folder, tuple(names), captions)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """A hash of the names and captions."""
        # Not of the content: reading hundreds of gigabytes would take longer than many runs.
        return fingerprint_of({"names": self.names, "captions": self.captions})

    def require_images(self, width: int, height: int, report: Callable[[], object] = lambda: None) -> None:
        """Reads the size of every image; raises UserError if some are missing or cannot be used.

        Warns of the number of images that are smaller than `width` x `height` or have no caption. `report` is called
        for every image.
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
            warn(
                f"{len(small):,} of {len(self):,} images are smaller than {width}x{height} and enlarged: {some(small)}"
            )
        if empty := self.captions.count(""):
            warn(f"{empty:,} of {len(self):,} images have no caption and train the empty prompt")

    def image(self, row: int, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
        """An upright image on white, resized to cover `width` x `height` and cropped to its centre.

        Raises UserError if it cannot be decoded.
        """
        path = self.folder / self.names[row]
        try:
            with _opened(path) as opened:
                black, white = _range_of(opened)
                opened.load()
                turn = _UPRIGHT.get(_orientation(opened) or 1)
                upright = _in_eight_bits(opened if turn is None else opened.transpose(turn), black, white)
                return np.asarray(ImageOps.fit(_on_white(upright), (width, height), Image.Resampling.LANCZOS), np.uint8)
        # Pillow's readers raise many kinds of errors on a broken file.
        except Exception as error:
            raise UserError(
                f"{path} cannot be decoded ({first_line(error)}): put a whole image in its place and run again; what "
                "is encoded is kept"
            ) from error

    def _size(self, name: str) -> tuple[int, int] | Exception | None:
        """Width and height of an upright image, None if there is no file, or the error."""
        try:
            with _opened(self.folder / name) as opened:
                _range_of(opened)
                width, height = opened.size
                # Pillow reports a TIFF's size as upright.
                turned = _orientation(opened) in _TURNED and opened.format != "TIFF"
                return (height, width) if turned else (width, height)
        except FileNotFoundError:
            return None
        except Exception as error:
            return error


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Image.Image]:
    """Opens an image, reading its header; raises ValueError, with the reason, if it is no image or too large."""
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
    """Why a file is no image: Pillow does not pass on the errors of its readers."""
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
    """The EXIF orientation of an image; None if there is none, or EXIF is broken."""
    try:
        # The PNG reader's own method would decode the whole image.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:
        return None


def _range_of(opened: Image.Image) -> tuple[int, int]:
    """The values of black and white in an image's file; raises ValueError if the format does not define them."""
    if opened.mode.startswith("I;16"):
        tags = getattr(opened, "tag_v2", {})
        white = (1 << tags.get(ExifTags.Base.BitsPerSample, (16,))[0]) - 1
        # A TIFF may use 0 for white, which Pillow inverts only in 8 bits.
        return (white, 0) if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else (0, white)
    # Pillow scales netpbm's values to 16 bits. Other such files hold signed or 32-bit values, such as depths.
    if opened.mode == "I" and opened.format == "PPM":
        return 0, (1 << 16) - 1
    if opened.mode in ("I", "F"):
        raise ValueError(
            "its values are signed or of 32 bits, and nothing says which is white: save it with 8 or 16 bits"
        )
    return 0, 255


def _in_eight_bits(image: Image.Image, black: int, white: int) -> Image.Image:
    """Rescales an image so that 0 is black and 255 white; Pillow would clip values above 255."""
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
