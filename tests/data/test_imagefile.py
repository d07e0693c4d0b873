"""Reading one file: pixels to the byte, or a message that names the file."""

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.data.datasets import read_image, read_mask
from meal_gpu.errors import InputError

# --- images -----------------------------------------------------------------------------------------

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def saved(image: Image.Image, path: Path, form: str = "PNG", **options: object) -> Path:
    image.save(path, form, **options)
    return path


def test_rgb_is_read_to_the_byte(tmp_path: Path) -> None:
    for form in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(read_image(saved(Image.fromarray(RGB), tmp_path / "x", form)), RGB)
    lossless = saved(Image.fromarray(RGB), tmp_path / "x.webp", "WEBP", lossless=True)
    np.testing.assert_array_equal(read_image(lossless), RGB)


def test_stated_conversions(tmp_path: Path) -> None:
    grey, alpha = RGB[..., 0], RGB[..., 1:2]
    repeated = np.repeat(grey[..., None], 3, 2)
    png = tmp_path / "x.png"
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(grey), png)), repeated)
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(np.dstack([RGB, alpha])), png)), RGB)
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(np.dstack([grey, alpha])), png)), repeated)
    bits = Image.fromarray(grey > 128)
    np.testing.assert_array_equal(read_image(saved(bits, png)), np.where(grey > 128, 255, 0)[..., None].repeat(3, 2))
    palette = Image.fromarray(grey % 5)
    palette.putpalette(RGB.tobytes())
    colours = RGB.reshape(-1, 3)[grey % 5]
    np.testing.assert_array_equal(read_image(saved(palette, png)), colours)
    np.testing.assert_array_equal(read_image(saved(palette, png, transparency=2)), colours)


def test_a_jpeg_named_png_is_read_as_the_jpeg_it_is(tmp_path: Path) -> None:
    jpeg = saved(Image.fromarray(RGB), tmp_path / "x.jpg", "JPEG", quality=90)
    renamed = shutil.copy(jpeg, tmp_path / "y.png")
    np.testing.assert_array_equal(read_image(renamed), np.array(Image.open(jpeg)))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to the right
    path = saved(Image.fromarray(RGB), tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))


def _png16(colour_type: int, channels: int) -> bytes:
    """A 16-bit PNG of 4 × 4 pixels, which Pillow cannot write in colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + bytes(range(4 * channels * 2))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["L", "RGB", "LA", "RGBA"])
def test_16_bit_images_are_refused(colour_type: int, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(_png16(colour_type, channels))
    with pytest.raises(InputError, match=r"more than 8 bits per channel.*Images must have 8"):
        read_image(path)
    with pytest.raises(InputError, match="Masks must be PNG files with one 8-bit channel"):
        read_mask(path)


def test_float_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than 8 bits"):
        read_image(saved(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "x.tif", "TIFF"))


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_unreadable_files_are_named(read: Callable[[Path], np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "x.png"

    def message() -> str:
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))
        return str(caught.value)

    assert "does not exist" in message()
    path.write_bytes(b"")
    assert "empty (0 bytes)" in message()
    path.write_bytes(b"hello, this is no image")
    assert "not an image that can be read" in message()
    content = saved(Image.fromarray(RGB[..., 0]), path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "truncated" in message()
    path.unlink()
    path.mkdir()
    assert "is a directory" in message()


def test_truncated_jpeg_and_bmp_are_refused(tmp_path: Path) -> None:
    for form in ("JPEG", "BMP", "TIFF", "WEBP"):
        path = saved(Image.fromarray(np.kron(RGB, np.ones((20, 20, 1), np.uint8))), tmp_path / "x", form)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(InputError, match=r"damaged|not an image"):
            read_image(path)


# Large areas, as masks have them. Pillow alone reads about a third of such files with one changed byte as other ids,
# because it does not compare the checksums of pixel data; noise, in contrast, hardly ever survives inflation.
AREAS = (np.arange(150)[:, None] // 15 + np.arange(150) // 50).astype(np.uint8)


@settings(max_examples=200)
@given(st.data())
def test_a_changed_byte_in_a_png_never_changes_a_pixel(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
                                                       ) -> None:
    buffer = io.BytesIO()
    Image.fromarray(AREAS).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "changed.png"
    path.write_bytes(content)
    try:
        ids = read_mask(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    else:
        np.testing.assert_array_equal(ids, AREAS)


# --- masks ------------------------------------------------------------------------------------------


def test_masks_are_ids_whether_grey_or_palette(tmp_path: Path) -> None:
    ids = RGB[..., 0] % 12
    np.testing.assert_array_equal(read_mask(saved(Image.fromarray(ids), tmp_path / "l.png")), ids)
    for colours in (256, 12):  # 12 colours are packed into 4 bits per pixel
        palette = Image.fromarray(ids)
        palette.putpalette(np.random.default_rng(1).integers(0, 256, colours * 3, np.uint8).tobytes())
        np.testing.assert_array_equal(read_mask(saved(palette, tmp_path / "p.png")), ids)


@pytest.mark.parametrize(("image", "form", "message"), [
    (Image.fromarray(RGB), "PNG", "holds colours.*write each pixel's class id"),
    (Image.fromarray(np.dstack([RGB, RGB[..., :1]])), "PNG", "holds colours"),
    (Image.fromarray(RGB[..., :2].copy(), "LA"), "PNG", "holds colours"),
    (Image.fromarray(RGB[..., 0].astype(np.uint16)), "PNG", "more than 8 bits"),
    (Image.fromarray(RGB[..., 0] > 9), "PNG", "fewer than 8 bits"),
    (Image.fromarray(RGB[..., 0]), "JPEG", "JPEG file.*Masks must be PNG"),
    (Image.fromarray(RGB[..., 0]), "BMP", "BMP file.*Masks must be PNG"),
], ids=["RGB", "RGBA", "LA", "16-bit", "1-bit", "JPEG", "BMP"])
def test_what_is_no_mask_is_refused(image: Image.Image, form: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_mask(saved(image, tmp_path / "x.png", form))


def test_masks_of_2_and_4_bit_grey_are_refused_because_pillow_stretches_them(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for depth in (2, 4):
        path = tmp_path / f"{depth}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 1, depth, 0, 0, 0, 0))
                         + chunk(b"IDAT", zlib.compress(b"\0" + b"\x1b" * depth)) + chunk(b"IEND", b""))
        with pytest.raises(InputError, match="fewer than 8 bits"):
            read_mask(path)
