"""Bytes of real files, harmed: the pixels that Pillow finds, or an `InputError` with the file's name; nothing else."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.data.imagefile import Reading, read_image, read_picture
from meal_gpu.data.maskfile import read_classes
from meal_gpu.data.rules import Rules
from meal_gpu.data.sheet import open_sheet, read_size
from meal_gpu.errors import InputError

RGB = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
IDS = (RGB[..., 0] % 3).astype(np.uint8)
RULES = Rules(np.array([0, 1, 2, *[254] * 252, 255], np.uint8), ("road", "tree", "car"))


def written(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 3, "a camera"
    image.save(stream, form, exif=exif, **options)
    return stream.getvalue()


def banded() -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.dstack([RGB, RGB]), photometric="rgb", extrasamples=["unspecified"] * 3)
    return stream.getvalue()


def parts() -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, RGB, photometric="rgb", compression="zlib", rowsperstrip=5)
    return stream.getvalue()


FILES = {
    "png": written(Image.fromarray(RGB), "PNG"), "jpeg": written(Image.fromarray(RGB), "JPEG"),
    "tiff": written(Image.fromarray(RGB), "TIFF"), "lzw": written(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"),
    "webp": written(Image.fromarray(RGB), "WEBP", lossless=True), "bmp": written(Image.fromarray(RGB), "BMP"),
    "bands": banded(),
}
HARMS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(harms=HARMS, cut=st.integers(0, 40))
def test_a_harmed_header_never_ends_in_a_traceback(kind: str, harms: list[tuple[int, int]], cut: int,
                                                   tmp_path: Path) -> None:
    content = bytearray(FILES[kind])
    for at, value in harms:
        content[at % len(content)] = value
    path = tmp_path / "harmed"
    path.write_bytes(content[: len(content) - cut * 8] if cut > 35 else content)
    for reading in (Reading(max_pixels=1e6), Reading("ignore", 1e6, (1, 2, 3))):
        try:
            found = read_image(path, reading)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right
            continue
        assert found.ndim == 3
        picture = read_picture(path, reading)
        assert picture.size == found.shape[:2]
        if kind == "png":  # every byte that matters is under a checksum
            np.testing.assert_array_equal(found, RGB[::-1, ::-1] if reading.exif == "apply" else RGB)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*FILES, "parts"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(harms=HARMS)
def test_a_harmed_file_that_tiles_are_cut_from_is_read_or_named(kind: str, harms: list[tuple[int, int]],
                                                                tmp_path: Path) -> None:
    content = bytearray(FILES.get(kind) or parts())
    for at, value in harms:
        content[at % len(content)] = value
    path = tmp_path / "harmed"
    path.write_bytes(content)
    for reading in (Reading(max_pixels=1e6), Reading("ignore", 1e6, (1, 2, 3))):
        try:
            size = read_size(path, reading)
            sheet = open_sheet(path, reading)
            found = sheet.cut((0, 0, *sheet.size))
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right
            continue
        assert found.shape == (*sheet.size, 3)
        assert found.dtype == np.uint8
        if kind == "png":
            assert size == sheet.size
            np.testing.assert_array_equal(found, RGB[::-1, ::-1] if reading.exif == "apply" else RGB)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("palette", [False, True])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(harms=HARMS)
def test_a_harmed_mask_is_never_another_mask(palette: bool, harms: list[tuple[int, int]], tmp_path: Path) -> None:
    image = Image.fromarray(IDS)
    if palette:
        image.putpalette([9, 0, 0, 0, 9, 0, 0, 0, 9])
    content = bytearray(written(image, "PNG"))
    for at, value in harms:
        content[at % len(content)] = value
    path = tmp_path / "harmed.png"
    path.write_bytes(content)
    try:
        found = read_classes(path, RULES).classes
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        np.testing.assert_array_equal(found, IDS)
