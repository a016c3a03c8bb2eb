import csv
import json
import struct
import zlib

import numpy as np
import pyarrow
import pytest
from PIL import ExifTags, Image
from pyarrow import parquet

from hgdpo_jax.data.image_folder import ImageFolder
from hgdpo_jax.errors import UserError

WIDTH, HEIGHT = 22, 32


def write_table(folder, rows, columns=("file_name", "text")):
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def pixels_of(tmp_path):
    """Pixels of a picture that went through a file, at 22x32."""

    def pixels(picture, name="a.png", **options):
        picture.save(tmp_path / name, **options)
        write_table(tmp_path, [(name, "a man")])
        return ImageFolder.open(tmp_path, "text").image(0, WIDTH, HEIGHT)

    return pixels


def gradient(width, height):
    """Red grows from left to right by one a pixel, green from top to bottom."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_every_table_of_the_convention_is_read_in_its_order(tmp_path, name):
    rows = [("people/b.png", " a woman, smiling "), ("a.png", "a man")]
    if name == "metadata.parquet":
        columns = {"file_name": [file for file, _ in rows], "caption": [text for _, text in rows], "faces": [1, 1]}
        parquet.write_table(pyarrow.table(columns), tmp_path / name)
    elif name == "metadata.csv":
        write_table(tmp_path, [(1, file, text) for file, text in rows], ("faces", "file_name", "caption"))
    else:
        lines = (json.dumps({"file_name": file, "caption": text, "faces": 1}) for file, text in rows)
        (tmp_path / name).write_text("\n".join(lines))
    images = ImageFolder.open(tmp_path, "caption")
    assert images.names == ("people/b.png", "a.png") and images.captions == ("a woman, smiling", "a man")


def test_image_of_the_same_size_comes_as_it_is(pixels_of):
    picture = gradient(WIDTH, HEIGHT)
    np.testing.assert_array_equal(pixels_of(picture), picture)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("more", [(0, 0), (40, 0), (0, 60)], ids=["same", "wider", "higher"])
def test_resize_keeps_the_aspect_and_the_crop_the_centre(pixels_of, scale, more):
    width, height = scale * WIDTH + more[0], scale * HEIGHT + more[1]
    pixels = pixels_of(gradient(width, height)).astype(float)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    # One pixel of the result is as many of the image, both ways, and what is cut off is the same on both sides.
    np.testing.assert_allclose(np.diff(pixels[HEIGHT // 2, 3:-3, 0]), scale, atol=1)
    np.testing.assert_allclose(np.diff(pixels[3:-3, WIDTH // 2, 1]), scale, atol=1)
    np.testing.assert_allclose(pixels[:, 3:-3, 0].mean(), (width - 1) / 2, atol=0.6)
    np.testing.assert_allclose(pixels[3:-3, :, 1].mean(), (height - 1) / 2, atol=0.6)


def test_small_image_is_enlarged_until_it_covers(pixels_of):
    assert (pixels_of(Image.new("RGB", (5, 5), (9, 80, 200))) == (9, 80, 200)).all()


def test_fine_pattern_becomes_its_mean_and_no_moire(pixels_of):
    x, y = np.meshgrid(np.arange(WIDTH * 4), np.arange(HEIGHT * 4))
    board = Image.fromarray(((x + y) % 2 * 255).astype(np.uint8))
    np.testing.assert_allclose(pixels_of(board), 127.5, atol=2)


def test_image_is_turned_as_its_exif_orientation_says(pixels_of, tmp_path):
    upright = gradient(2 * WIDTH, 2 * HEIGHT)
    exif = Image.Exif()
    # To be turned by a quarter clockwise when shown.
    exif[ExifTags.Base.Orientation] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(pixels_of(turned, exif=exif), pixels_of(upright, "b.png"))


def test_size_of_a_turned_image_is_the_upright_one(tmp_path, capsys):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "a.png", exif=exif)
    write_table(tmp_path, [("a.png", "a man")])
    ImageFolder.open(tmp_path, "text").require_images(WIDTH, HEIGHT)
    assert capsys.readouterr().err == ""


def test_transparent_parts_are_white(pixels_of):
    for mode in ("RGBA", "LA"):
        assert (pixels_of(Image.new("RGBA", (30, 40), (0, 0, 0, 0)).convert(mode)) == 255).all()
    palette = Image.new("P", (30, 40), 3)
    palette.putpalette([10, 20, 30] * 256)
    assert (pixels_of(palette, transparency=3) == 255).all()
    assert (pixels_of(palette) == (10, 20, 30)).all()
    assert (pixels_of(Image.fromarray(np.full((40, 30), 100, np.uint16)), transparency=100) == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_kinds_of_images_become_rgb(pixels_of, mode):
    pixels = pixels_of(Image.new("RGB", (30, 40), "white").convert(mode), "a.tif")
    assert pixels.shape == (HEIGHT, WIDTH, 3) and (pixels == 255).all()


@pytest.mark.parametrize("name", ["a.png", "little.tif", "big.tif", "negative.tif", "a.pgm"])
def test_grey_of_16_bits_is_that_of_its_8_bit_copy(pixels_of, name):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    eight = Image.fromarray(np.round(values / 257).astype(np.uint8))
    options = {}
    if name == "negative.tif":
        values, options["tiffinfo"] = 65535 - values, {ExifTags.Base.PhotometricInterpretation.value: 0}
    picture = Image.fromarray(values.astype({"big.tif": ">u2", "a.pgm": "i4"}.get(name, "<u2")))
    np.testing.assert_array_equal(pixels_of(picture, name, **options), pixels_of(eight, "eight.png"))


@pytest.mark.parametrize("values", [np.float32(0.5), np.int32(1 << 20)])
def test_image_whose_white_is_unknown_is_named_before_any_is_used(pixels_of, tmp_path, values):
    with pytest.raises(UserError, match="a.tif cannot be decoded .*nothing says which is white"):
        pixels_of(Image.fromarray(np.full((40, 30), values)), "a.tif")
    with pytest.raises(UserError, match="cannot be used, a.tif .*nothing says which is white"):
        ImageFolder.open(tmp_path, "text").require_images(WIDTH, HEIGHT)


def test_small_images_and_empty_captions_are_counted(tmp_path, capsys):
    for number, size in enumerate([(22, 32), (21, 32), (30, 31)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    write_table(tmp_path, [(f"{number}.png", "" if number else "a man") for number in range(3)])
    opened = []
    ImageFolder.open(tmp_path, "text").require_images(WIDTH, HEIGHT, lambda: opened.append(1))
    assert capsys.readouterr().err.splitlines() == [
        "warning: 2 of 3 images are smaller than 22x32 and enlarged: 1.png (21x32), 2.png (30x31)",
        "warning: 2 of 3 images have no caption and train the empty prompt",
    ]
    assert len(opened) == 3


def test_fingerprint_is_that_of_names_and_captions(tmp_path):
    prints = []
    for folder, row in (
        ("a", ("a.png", "a man")),
        ("b", ("a.png", "a man")),
        ("c", ("b.png", "a man")),
        ("d", ("a.png", "a boy")),
    ):
        (tmp_path / folder).mkdir()
        write_table(tmp_path / folder, [row])
        prints.append(ImageFolder.open(tmp_path / folder, "text").fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            None,
            "",
            "has no metadata.jsonl, metadata.csv or metadata.parquet, expected one with the columns file_name and text",
        ),
        ("metadata.csv", "", "is empty, expected the columns file_name and text"),
        ("metadata.csv", "image,text\na.png,a man\n", "has no column 'file_name', expected it beside image, text"),
        (
            "metadata.csv",
            "file_name,caption\na.png,a man\n",
            "has no column 'text', .*caption_column .* one of caption",
        ),
        ("metadata.csv", "file_name,text\n,a man\n", "line 2 of .* has no file_name"),
        ("metadata.csv", "file_name,text\na.png,a\n../a.png,b\n", "line 3 of .* names '../a.png', which leads out"),
        ("metadata.csv", "file_name,text\n/a.png,b\n", "line 2 of .* names '/a.png', which leads out"),
        ("metadata.csv", "file_name,text\nb\\..\\..\\a.png,b\n", "which leads out"),
        ("metadata.jsonl", '{"file_name": "gs://a/a.png", "text": "a man"}', "which leads out"),
        ("metadata.csv", "file_name,text\na.png,\n", "has no text in its column 'text'"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', "line 1 of .* has 3 as 'text', expected a text"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a smile \\ud83d"}', "line 1 of .* half a character"),
        ("metadata.jsonl", "a.png", "line 1 of .* is not JSON"),
        ("metadata.csv", b"file_name,text\na.png,caf\xe9\n", "is not UTF-8"),
    ],
)
def test_folder_whose_table_is_not_as_expected_is_refused_in_one_line(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        ImageFolder.open(tmp_path, "text")
    assert "\n" not in str(error.value)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere' does not exist, expected a folder with metadata.jsonl"):
        ImageFolder.open(tmp_path / "nowhere", "text")


def test_missing_and_unreadable_images_are_named_before_any_is_used(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    write_table(tmp_path, [("good.png", "a"), ("bad.png", "b"), ("absent.png", "c")])
    with pytest.raises(UserError, match="lacks absent.png, which its table names"):
        ImageFolder.open(tmp_path, "text").require_images(WIDTH, HEIGHT)
    write_table(tmp_path, [("good.png", "a"), ("bad.png", "b")])
    with pytest.raises(UserError, match=r"cannot be used, bad.png \(no image, begins with b'no image'\): replace them"):
        ImageFolder.open(tmp_path, "text").require_images(WIDTH, HEIGHT)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "extra",
    [chunk(b"eXIf", b"no EXIF"), chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"a" * (2 << 20)))],
    ids=["broken EXIF", "long text"],
)
def test_what_surrounds_the_pixels_of_an_image_does_not_keep_it_out(tmp_path, extra):
    picture = gradient(WIDTH, HEIGHT)
    picture.save(tmp_path / "a.png")
    header = 8 + len(chunk(b"IHDR", bytes(13)))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:header] + extra + content[header:])
    write_table(tmp_path, [("a.png", "a man")])
    images = ImageFolder.open(tmp_path, "text")
    images.require_images(WIDTH, HEIGHT)
    np.testing.assert_array_equal(images.image(0, WIDTH, HEIGHT), picture)


def png_of(width, height):
    """A PNG as far as its header."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        # 200 million pixels take 0.8 GB while they are decoded.
        (png_of(20_000, 10_000), None),
        (png_of(20_000, 20_000), "20000x20000 pixels, expected at most 268 million"),
        (png_of(0, 10), "PNG: "),
        (png_of(20, 10)[:-30] + bytes(30), "PNG: broken PNG file"),
        (b"", "an empty file"),
        (b"<!DOCTYPE html>\n<html>", r"no image, begins with b'<!DOCTYPE html>\\n'"),
        ("folder", "Is a directory"),
    ],
    ids=["200 million pixels", "400 million", "no pixels", "damaged", "empty", "web page", "folder"],
)
def test_reason_why_an_image_cannot_be_used_is_told_before_any_is_used(tmp_path, content, reason):
    if content == "folder":
        (tmp_path / "a.png").mkdir()
    else:
        (tmp_path / "a.png").write_bytes(content)
    write_table(tmp_path, [("a.png", "a man")])
    images = ImageFolder.open(tmp_path, "text")
    if reason is None:
        return images.require_images(WIDTH, HEIGHT)
    with pytest.raises(UserError, match=f"images that cannot be used, a.png \\(.*{reason}.*: replace them"):
        images.require_images(WIDTH, HEIGHT)


def test_image_that_breaks_off_is_named_when_it_is_decoded(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(random).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    write_table(tmp_path, [("a.png", "a man")])
    with pytest.raises(UserError, match="a.png cannot be decoded .*: put a whole image in its place"):
        ImageFolder.open(tmp_path, "text").image(0, WIDTH, HEIGHT)
