"""What a TIFF file says of itself: its tags decide whether it can be read, not what a library makes of its layout."""

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

Content = bytes | mmap.mmap
"""Of a file: read, or mapped where its header is enough."""
SIGNATURES = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")
"""Two of them are in no standard; Pillow takes them."""
_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}
"""Bytes of a value, by TIFF's types of whole numbers."""
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Samples that a photometric interpretation takes: white is zero, black is zero, RGB, palette, CMYK, YCbCr."""
_NAMES = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 4: "a transparency mask", 8: "CIELab",
          32803: "a colour filter array", 34892: "raw linear data"}
_FORMATS = {2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex floating point"}


@dataclass(frozen=True)
class Layout:
    """The tags of the first image of a file that say what its samples are."""

    bits: tuple[int, ...]
    formats: tuple[int, ...]
    photometric: int
    samples: int
    planar: bool
    extra: tuple[int, ...]
    size: tuple[int, int]
    """(height, width)"""
    turn: int
    """The orientation, as in EXIF."""

    def words(self) -> str:
        """``16 bits per sample, planar, 5 samples``"""
        bits = "/".join(str(bit) for bit in sorted(set(self.bits)))
        parts = [f"{bits} bits per sample", *(_FORMATS[f] for f in sorted(set(self.formats)) if f in _FORMATS),
                 _NAMES.get(self.photometric, f"photometric interpretation {self.photometric}"),
                 f"{self.samples} sample{'s' * (self.samples > 1)} per pixel"]
        return ", ".join([*parts, "planar"] if self.planar and self.samples > 1 else parts)


def layout(content: Content) -> Layout | None:
    """Read the tags; None where they cannot be."""
    try:
        tags = _tags(content)
        samples = tags.get(277, (1,))[0]
        return Layout(tags.get(258, (1,)), tags.get(339, (1,)), tags[262][0], samples, tags.get(284, (1,))[0] == 2,
                      tags.get(338, ()), (tags[257][0], tags[256][0]), tags.get(274, (1,))[0])
    except (struct.error, KeyError, IndexError, OverflowError):
        return None


def check_layout(content: Content, path: object, choosing: bool) -> None:
    """Raise `InputError` for a layout that is no 8-bit grey, RGB, CMYK or palette, with or without alpha.

    ``choosing``: bands are picked by their numbers, so that there may be more of them.
    """
    found = layout(content)
    if found is None:
        return  # not even tags: whoever decodes says so
    allowed = "Images must be 8-bit grey or RGB, with or without alpha"
    unsigned = set(found.formats) <= {1, 4}
    if max(found.bits) > 8 or not unsigned or len(set(found.bits)) > 1:
        many = "more than 8 bits per channel" if max(found.bits) > 8 else "other samples than whole numbers from 0"
        raise InputError(f"{path} has {many}: {found.words()}. Images must have 8: convert it, choosing yourself which "
                         "range of values becomes 0 to 255.")
    if choosing:
        return
    colours = _COLOURS.get(found.photometric)
    if colours is None:
        raise InputError(f"{path} is a TIFF file of {found.words()}. {allowed}: convert it.")
    more = found.samples - colours
    alpha = more == 1 and found.extra[:1] in ((1,), (2,)) and found.photometric in (1, 2)
    if more < 0 or (more and not alpha):
        raise InputError(f"{path} is a TIFF file of {found.words()}, {max(more, 0)} of them beyond "
                         f"{_NAMES[found.photometric]}. {allowed}: say which bands are red, green and blue, for "
                         "example data.bands: [1, 2, 3], or which one is grey, data.bands: [1].")
    if found.planar and found.samples > 1 and found.photometric != 2:
        raise InputError(f"{path} is a TIFF file of {found.words()}. {allowed}, planar only where it is RGB: save it "
                         "with interleaved samples, or give data.bands.")
    if alpha and found.photometric == 1 and found.extra[0] == 1:
        raise InputError(f"{path} is a TIFF file of {found.words()}, grey multiplied by its alpha. {allowed}: save it "
                         "without alpha.")


def read_bands(content: bytes, path: object, bands: Sequence[int]) -> np.ndarray:
    """Decode 8-bit samples and choose bands, counted from 1: uint8 ``[H, W, 3]``, one band as grey.

    Raises `InputError` where tifffile is not installed or cannot read the file, or a band is not there.
    """
    import io

    try:
        import tifffile
    except ImportError:
        raise InputError(f"data.bands needs tifffile to read {path}: pip install 'meal-gpu[tiff]'.") from None
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            pixels, axes = page.asarray(), page.axes
            pixels = pixels[..., None] if "S" not in axes else np.moveaxis(pixels, axes.index("S"), -1)
    except Exception as error:  # it fails in whatever way the damage leads it to
        raise InputError(f"{path} cannot be decoded ({error}). If a codec is missing: pip install 'meal-gpu[tiff]'; "
                         "else copy the file again.") from None
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise InputError(f"{path} holds {pixels.dtype} of axes {axes}. data.bands chooses from 8-bit samples of one "
                         "image.")
    if max(bands) > pixels.shape[2]:
        raise InputError(f"{path} has {pixels.shape[2]} bands, and data.bands is {list(bands)}: bands are counted from "
                         "1.")
    chosen = [band - 1 for band in (bands if len(bands) == 3 else [*bands] * 3)]
    return np.ascontiguousarray(pixels[..., chosen])


def _tags(content: Content) -> dict[int, tuple[int, ...]]:
    """Whole numbers of the first directory, by tag; also of BigTIFF."""
    order, big = ("<" if content[:2] == b"II" else ">"), content[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, start)
    first, step, inline = (start + 8, 20, 8) if big else (start + 2, 12, 4)
    found = {}
    for at in range(first, first + step * min(count, 4096), step):
        tag, kind = struct.unpack_from(order + "HH", content, at)
        (n,) = struct.unpack_from(order + ("Q" if big else "I"), content, at + 4)
        if kind not in _SIZES or not 1 <= n <= 4096:
            continue
        place = at + step - inline
        if n * _SIZES[kind] > inline:
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), content, place)
        found[tag] = struct.unpack_from(f"{order}{n}{'BHIQ'[(1, 3, 4, 16).index(kind)]}", content, place)
    return found
