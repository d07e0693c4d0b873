"""Every format x bits x layout x orientation x role: read right, by the generating array, or refused by its name."""

import logging
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio.v3
import numpy as np
import pytest
import tifffile
from PIL import Image

from meal_gpu.data.imagefile import Reading, read_image, read_picture
from meal_gpu.data.maskfile import read_classes
from meal_gpu.data.rules import Rules
from meal_gpu.errors import InputError

RNG = np.random.default_rng(0)
SIZE = (20, 24)
RGB = np.kron(RNG.integers(0, 256, (5, 6, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
GREY = RGB[..., 0].copy()
IDS = (GREY % 3).astype(np.uint8)
RULES = Rules(np.array([0, 1, 2, *[254] * 252, 255], np.uint8), ("road", "tree", "car"))
COLOURED = Rules(RULES.to_class, RULES.class_names, {0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2},
                 {0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2})
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1)}
"""EXIF's orientations in words of NumPy, to tell them apart from Pillow's."""


@dataclass
class Cell:
    name: str
    write: Callable[[Path], object]
    right: np.ndarray | None = None
    """What must be read; None where it must be refused, by the file's name and ``says``."""
    says: str = ""
    mask: bool = False
    rules: Rules = field(default_factory=lambda: RULES)
    reading: Reading = field(default_factory=Reading)
    tolerance: int = 0


def grey3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2)


def png(depth: int, colour_type: int, rows: bytes, width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG of any depth, which Pillow does not write; ``rows`` without filter bytes."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + (chunk(b"PLTE", extra) if extra else b"")
            + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


def packed(values: np.ndarray, depth: int) -> bytes:
    bits = np.unpackbits(values[..., None].astype(np.uint8), axis=-1)[..., 8 - depth :].reshape(len(values), -1)
    return np.packbits(bits, axis=1).tobytes()


def pillow(image: Image.Image, form: str, **options: Any) -> Callable[[Path], object]:
    return lambda path: image.save(path, form, **options)


def exif(value: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = value
    return found


def cells() -> list[Cell]:
    return [*_turned(), *_plain_images(), *_depths(), *_tiffs(), *_masks()]


def _turned() -> list[Cell]:
    """Formats x eight orientations x both readings."""
    found = []
    forms = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    for form, options in forms.items():
        for value, upright in UPRIGHT.items():
            for how in ("apply", "ignore"):
                found.append(Cell(f"{form} turned {value} {how}", pillow(Image.fromarray(RGB), form, **options,
                                                                         exif=exif(value)),
                                  upright(RGB) if how == "apply" else RGB, reading=Reading(how),
                                  tolerance=6 if form == "JPEG" else 0))
    return found


def _plain_images() -> list[Cell]:
    alpha = RNG.integers(0, 256, SIZE, np.uint8)
    rgb, grey = Image.fromarray(RGB), Image.fromarray(GREY)
    rgba, la = Image.fromarray(np.dstack([RGB, alpha])), Image.fromarray(np.dstack([GREY, alpha]), "LA")
    bits = Image.fromarray(GREY > 128)
    palette = Image.fromarray(IDS)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    shown = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[IDS]
    modes = {"rgb": (rgb, RGB), "grey": (grey, grey3(GREY)), "rgba": (rgba, RGB), "grey alpha": (la, grey3(GREY)),
             "one bit": (bits, grey3(np.where(GREY > 128, 255, 0).astype(np.uint8))), "palette": (palette, shown)}
    takes = {"PNG": modes, "BMP": ["rgb", "grey", "rgba", "one bit", "palette"], "TIFF": modes, "WEBP": ["rgb"],
             "GIF": ["palette"]}
    found = [Cell(f"{form} {name}", pillow(modes[name][0], form, **({"lossless": True} if form == "WEBP" else {})),
                  modes[name][1]) for form, names in takes.items() for name in names]
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate"):
        for name in ("rgb", "grey", "rgba", "palette"):
            found.append(Cell(f"TIFF {name} {compression}", pillow(modes[name][0], "TIFF", compression=compression),
                              modes[name][1]))
    for name in ("rgb", "grey"):
        found.append(Cell(f"JPEG {name}", pillow(modes[name][0], "JPEG", quality=100, subsampling=0), modes[name][1],
                          tolerance=6))
    cmyk = rgb.convert("CMYK")
    found.append(Cell("TIFF cmyk", pillow(cmyk, "TIFF"), RGB))
    return found


def _depths() -> list[Cell]:
    found = []
    for depth in (1, 2, 4):
        values = (GREY >> (8 - depth)).astype(np.uint8)
        content = png(depth, 0, packed(values, depth), SIZE[1], SIZE[0])
        scaled = (values.astype(int) * 255 // (2**depth - 1)).astype(np.uint8)
        found.append(Cell(f"PNG grey {depth} bits", lambda p, c=content: p.write_bytes(c), grey3(scaled)))
        found.append(Cell(f"PNG grey {depth} bits as mask", lambda p, c=content: p.write_bytes(c),
                          says="fewer than 8 bits", mask=True))
        colours = RNG.integers(0, 256, (2**depth, 3), np.uint8)
        content = png(depth, 3, packed(values, depth), SIZE[1], SIZE[0], colours.tobytes())
        found.append(Cell(f"PNG palette {depth} bits", lambda p, c=content: p.write_bytes(c), colours[values]))
    for kind, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        content = png(16, kind, RNG.integers(0, 256, SIZE[0] * SIZE[1] * channels * 2, np.uint8).tobytes(), SIZE[1],
                      SIZE[0])
        for mask in (False, True):
            found.append(Cell(f"PNG 16 bits type {kind} mask {mask}", lambda p, c=content: p.write_bytes(c),
                              says="more than 8 bits", mask=mask))
    return found


def _tiffs() -> list[Cell]:
    """By tifffile: layouts that Pillow cannot write, and some that it misreads."""
    found = []
    stack = RNG.integers(0, 256, (*SIZE, 6), np.uint8)
    stack[..., 3] = 255

    def add(name: str, array: np.ndarray, right: np.ndarray | None, says: str = "", reading: Reading | None = None,
            **options: Any) -> None:
        found.append(Cell(f"TIFF {name}", lambda p: tifffile.imwrite(p, array, **options), right, says,
                          reading=reading or Reading()))

    for tile in (None, (16, 16)):
        for compression in (None, "zlib"):
            more = {"tile": tile, "compression": compression}
            at = f"{'tiled' if tile else 'strips'} {compression}"
            add(f"grey {at}", GREY, grey3(GREY), photometric="minisblack", **more)
            add(f"white is zero {at}", GREY, grey3(255 - GREY), photometric="miniswhite", **more)
            add(f"rgb {at}", RGB, RGB, photometric="rgb", **more)
            add(f"rgb planar {at}", np.moveaxis(RGB, -1, 0).copy(), RGB, photometric="rgb", planarconfig="separate",
                **more)
            for alpha in ("unassalpha", "assocalpha"):
                add(f"rgb {alpha} {at}", stack[..., :4], stack[..., :3], photometric="rgb", extrasamples=[alpha],
                    **more)
            add(f"grey unassalpha {at}", stack[..., :2], grey3(stack[..., 0]), photometric="minisblack",
                extrasamples=["unassalpha"], planarconfig="contig", **more)
            for n in (4, 5, 6):  # bands that were dropped without a word
                add(f"{n} bands {at}", stack[..., :n], None, f"{n} samples per pixel", photometric="rgb",
                    extrasamples=["unspecified"] * (n - 3), **more)
                add(f"{n} bands chosen {at}", stack[..., :n], stack[..., [3, 0, 1]], reading=Reading(bands=(4, 1, 2)),
                    photometric="rgb", extrasamples=["unspecified"] * (n - 3), **more)
                add(f"{n} planar bands chosen {at}", np.moveaxis(stack[..., :n], -1, 0).copy(),
                    grey3(stack[..., n - 1]), reading=Reading(bands=(n,)), photometric="minisblack",
                    planarconfig="separate", extrasamples=["unspecified"] * (n - 1), **more)
    for big in (False, True):
        for order in "<>":
            rare = big and order == ">"  # Pillow does not open it
            add(f"big {big} order {order}", RGB, None if rare else RGB, "data.bands" * rare, photometric="rgb",
                bigtiff=big, byteorder=order)
            add(f"big {big} order {order} chosen", RGB, RGB[..., ::-1], reading=Reading(bands=(3, 2, 1)),
                photometric="rgb", bigtiff=big, byteorder=order)
            add(f"16 bits big {big} order {order}", RGB.astype(np.uint16), None, "16 bits per sample",
                photometric="rgb", bigtiff=big, byteorder=order)
    for dtype, says in (("int8", "signed"), ("int16", "16 bits"), ("uint32", "32 bits"), ("float32", "floating"),
                        ("float64", "64 bits")):
        for planar in ("contig", "separate"):
            array = RGB.astype(dtype)
            add(f"{dtype} {planar}", array if planar == "contig" else np.moveaxis(array, -1, 0).copy(), None, says,
                photometric="rgb", planarconfig=planar)
        add(f"{dtype} grey", GREY.astype(dtype), None, says, photometric="minisblack")
        add(f"{dtype} chosen", RGB.astype(dtype), None, says, reading=Reading(bands=(1,)), photometric="rgb")
    add("a band that is not there", RGB, None, "has 3 bands", reading=Reading(bands=(4,)), photometric="rgb")
    add("three bands of grey", RGB, None, "data.bands", photometric="minisblack", planarconfig="contig",
        extrasamples=["unspecified"] * 2)
    return found


def _masks() -> list[Cell]:
    """A data set's masks and a labeller's go through one reader."""
    found = []

    def add(name: str, image: Image.Image, right: np.ndarray | None = None, says: str = "", form: str = "PNG",
            rules: Rules = RULES, **options: Any) -> None:
        found.append(Cell(f"mask {form} {name}", pillow(image, form, **options), right, says, True, rules))

    def indexed(values: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
        image = Image.fromarray(values)
        image.putpalette([part for colour in colours for part in colour])
        return image

    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    shown = np.array(colours, np.uint8)[IDS]
    add("grey", Image.fromarray(IDS), IDS)
    for value in (3, 6, 8):  # a mask's orientation is nobody's
        add(f"turned {value}", Image.fromarray(IDS), IDS, exif=exif(value))
    for bits in (2, 4, 8):
        add(f"palette of {bits} bits", indexed(IDS, [(9, 9, 0), (9, 0, 9), (0, 9, 9)]), IDS, bits=bits)
        add(f"palette of greys, {bits} bits", indexed(np.array([1, 2, 0], np.uint8)[IDS], [(2,) * 3, (0,) * 3, (1,) * 3]
                                                      ), IDS, bits=bits)
        add(f"palette of class colours, {bits} bits", indexed(np.array([1, 2, 0], np.uint8)[IDS], [
            colours[2], colours[0], colours[1]]), IDS, rules=COLOURED, bits=bits)
        add(f"black and white, {bits} bits", indexed((IDS > 0).astype(np.uint8), [(0,) * 3, (255,) * 3]), None,
            "read in two ways", bits=bits)
    add("rgb", Image.fromarray(shown), IDS, rules=COLOURED)
    add("rgba", Image.fromarray(np.dstack([shown, GREY])), IDS, rules=COLOURED)
    add("rgb without a table", Image.fromarray(shown), None, "data.mask_colours")
    wrong = shown.copy()
    wrong[0, 0] = 7, 8, 9
    add("rgb with another colour", Image.fromarray(wrong), None, r"\[7, 8, 9\]", rules=COLOURED)
    add("an id of no class", Image.fromarray(IDS + 3), None, "holds the class id")
    add("grey alpha", Image.fromarray(np.dstack([IDS, IDS]), "LA"), None, "holds colours")
    add("one bit", Image.fromarray(IDS > 0), None, "fewer than 8 bits")
    for form in ("JPEG", "BMP", "TIFF", "WEBP", "GIF"):
        add("as it is", Image.fromarray(IDS), None, f"{form} file", form)
    return found


CELLS = cells()


def test_there_are_enough_cells() -> None:
    assert len(CELLS) >= 150
    assert len({cell.name for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
def test_a_cell_is_read_right_or_refused_by_name(cell: Cell, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cell.write(path)

    def read() -> np.ndarray:
        return read_classes(path, cell.rules).classes if cell.mask else read_image(path, cell.reading)

    if cell.right is None:
        with pytest.raises(InputError, match=cell.says) as caught:
            read()
        assert str(path) in str(caught.value)
        return
    found = read()
    assert found.shape == cell.right.shape
    assert np.abs(found.astype(int) - cell.right).max() <= cell.tolerance
    if not cell.mask:  # what goes to a faster decoder says the same of the size and of the turn
        picture = read_picture(path, cell.reading)
        assert picture.size == found.shape[:2]
        if picture.content.ndim == 3:
            np.testing.assert_array_equal(picture.content, found)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_imageio_reads_the_same(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(RGB).save(path)
    logging.disable(logging.WARNING)
    try:
        np.testing.assert_array_equal(read_image(path), imageio.v3.imread(path))
    finally:
        logging.disable(logging.NOTSET)
