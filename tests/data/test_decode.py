"""Both decoders against Pillow: equal pixels for every kind of file, and the file that is at fault is named."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ImageCms import ImageCmsProfile, createProfile

from meal_gpu.data.datasets import Sample
from meal_gpu.data.decode import Decoder, decode_all, open_decoder
from meal_gpu.data.imagefile import Picture, read_image, read_picture
from meal_gpu.data.rules import Rules
from meal_gpu.errors import InputError

SIZE = (37, 53)  # odd, so that JPEG's blocks and halved colours do not fit
RNG = np.random.default_rng(0)
# Smooth, as photographs are: JPEG decoders differ most where nothing is smooth.
RGB = np.array(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize(SIZE[::-1], Image.Resampling.BICUBIC))
IMAGE = Image.fromarray(RGB)
TABLE = Rules(np.arange(256, dtype=np.uint8))


@pytest.fixture(params=["dali", "torchvision"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return open_decoder(request.param, SIZE)


def save(path: Path, image: Image.Image, form: str = "PNG", **options: object) -> Sample:
    image.save(path, form, **options)
    return Sample(path.stem, path, None)


def decoded(samples: Sequence[Sample], decoder: Decoder, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    return [image for image, *_ in decode_all(samples, size, TABLE, decoder)]


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = value
    return exif


def with_gamma() -> bytes:
    """A PNG that asks for another gamma: the pixels are what is stored, as Pillow has it."""
    content = io.BytesIO()
    IMAGE.save(content, "PNG")
    chunk = b"gAMA" + struct.pack(">I", 100_000)
    return (content.getvalue()[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
            + content.getvalue()[33:])


PNG = {
    "rgb": lambda p: save(p, IMAGE), "grey": lambda p: save(p, IMAGE.convert("L")),
    "rgba": lambda p: save(p, Image.fromarray(np.dstack([RGB, RGB[..., 0]]))),
    "grey alpha": lambda p: save(p, IMAGE.convert("LA")), "one bit": lambda p: save(p, IMAGE.convert("1")),
    "palette": lambda p: save(p, IMAGE.quantize(16)),
    "palette with transparency": lambda p: save(p, IMAGE.quantize(16), transparency=3),
    "4-bit palette": lambda p: save(p, IMAGE.quantize(7), bits=4),
    "colour key": lambda p: save(p, IMAGE, transparency=tuple(int(v) for v in RGB[0, 0])),
    "turned": lambda p: save(p, IMAGE.rotate(90, expand=True), exif=orientation(6)),
    "icc profile": lambda p: save(p, IMAGE, icc_profile=ImageCmsProfile(createProfile("LAB")).tobytes()),
    "jpeg by another name": lambda p: save(p, IMAGE, "JPEG", quality=92),
    "bmp": lambda p: save(p, IMAGE, "BMP"), "tiff": lambda p: save(p, IMAGE, "TIFF", compression="tiff_lzw"),
    "webp": lambda p: save(p, IMAGE, "WEBP", lossless=True),
    "cmyk tiff": lambda p: save(p, IMAGE.convert("CMYK"), "TIFF"),
}


def test_every_kind_of_file_gives_pillows_pixels(decoder: Decoder, tmp_path: Path) -> None:
    """All in one go, so that plain files and those that Pillow decodes share batches."""
    samples = [make(tmp_path / f"{i}.png") for i, make in enumerate(PNG.values())]
    (tmp_path / "gamma.png").write_bytes(with_gamma())
    samples.append(Sample("gamma", tmp_path / "gamma.png", None))
    for name, sample, image in zip([*PNG, "gamma"], samples, decoded(samples, decoder), strict=True):
        np.testing.assert_array_equal(image, read_image(sample.image), err_msg=name)


@pytest.mark.parametrize("options", [
    {"quality": 95, "subsampling": 0}, {"quality": 75, "subsampling": 2}, {"quality": 30, "subsampling": 1},
    {"quality": 90, "progressive": True}, {"quality": 90, "restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
def test_jpeg_is_within_the_stated_tolerance(decoder: Decoder, options: dict, kind: str, tmp_path: Path) -> None:
    """2 levels; where all use the same libjpeg-turbo it is 0."""
    sample = save(tmp_path / "x.jpg", IMAGE.convert(kind), "JPEG", **options)
    (image,) = decoded([sample], decoder)
    assert np.abs(image.astype(int) - read_image(sample.image)).max() <= 2


def test_an_orientation_of_jpeg_is_applied_once(decoder: Decoder, tmp_path: Path) -> None:
    sample = save(tmp_path / "x.jpg", IMAGE.rotate(90, expand=True), "JPEG", quality=95, exif=orientation(6))
    (image,) = decoded([sample], decoder)
    assert np.abs(image.astype(int) - read_image(sample.image)).max() <= 2
    assert np.abs(image.astype(int) - RGB).mean() < 4


@pytest.mark.parametrize("size", [(20, 30), (74, 106), (37, 20)])
def test_kinds_are_resized_alike(size: tuple[int, int], tmp_path: Path) -> None:
    """Whether the decoder reads the file or Pillow does, one filter resizes it."""
    for name in ("dali", "torchvision"):
        if name == "dali":
            pytest.importorskip("nvidia.dali")
        samples = [PNG["rgb"](tmp_path / "a.png"), PNG["bmp"](tmp_path / "b.bmp")]
        a, b = decoded(samples, open_decoder(name, size), size)
        np.testing.assert_array_equal(a, b)
        by_pillow = np.array(IMAGE.resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(a - by_pillow)[2:-2, 2:-2].max() <= 1


def test_a_bad_file_is_named_after_all_that_come_before_it(decoder: Decoder, tmp_path: Path) -> None:
    """Wherever it stands in its batch: first, last, alone, far behind."""
    good = [PNG["rgb"](tmp_path / f"{i}.png") for i in range(3 * decoder.batch + 1)]
    for at in (0, 1, decoder.batch - 1, decoder.batch, 3 * decoder.batch):
        bad = tmp_path / f"bad{at}.png"
        bad.write_bytes(good[0].image.read_bytes()[:-30])
        images = decode_all([*good[:at], Sample("bad", bad, None), *good[at:]], SIZE, TABLE, decoder)
        for _ in range(at):
            np.testing.assert_array_equal(next(images)[0], RGB)
        with pytest.raises(InputError, match=f"bad{at}.png is truncated"):
            next(images)


def _bad_deflate(content: bytes) -> bytes:
    """Chunk checksums are right, what they hold is not: only decoding finds that."""

    at = content.index(b"IDAT")
    (length,) = struct.unpack(">I", content[at - 4 : at])
    body = b"IDAT" + content[at + 4 : at + 12] + bytes(length - 8)
    return content[:at] + body + struct.pack(">I", zlib.crc32(body)) + content[at + length + 8 :]


@pytest.mark.parametrize(("name", "harm"), [
    ("x.png", _bad_deflate), ("x.png", lambda content: content[: len(content) // 2]), ("x.png", lambda content: b""),
    ("x.png", lambda content: b"<html>" + content), ("x.jpg", lambda content: content[: len(content) // 2]),
    ("x.jpg", lambda content: content[: len(content) // 3] + b"\xff\xd9"),
])
def test_damage_never_becomes_a_wrong_pixel(decoder: Decoder, name: str, harm, tmp_path: Path, capfd) -> None:
    """Refused by name, or what Pillow makes of it where a JPEG's damage cannot be known for damage."""
    path = tmp_path / name
    sample = save(path, IMAGE, "PNG" if name.endswith("png") else "JPEG")
    path.write_bytes(harm(path.read_bytes()))
    good = PNG["rgb"](tmp_path / "good.png")
    try:
        expected = read_image(path)
    except InputError:
        with pytest.raises(InputError, match=str(path)):
            decoded([good, sample], decoder)
        return
    image = decoded([good, sample], decoder)[1]
    np.testing.assert_array_equal(image, expected)


class Refusing:
    """A decoder that meets a file it cannot read: a real one, behind a rule."""

    def __init__(self, real: Decoder, refused: bytes) -> None:
        self.real, self.refused, self.batch = real, refused, real.batch

    def decode(self, pictures: Sequence[Picture]) -> list[np.ndarray]:
        if any(picture.content.tobytes() == self.refused for picture in pictures):
            raise RuntimeError("refused")
        return self.real.decode(pictures)


def test_what_the_decoder_refuses_pillow_decodes(decoder: Decoder, tmp_path: Path, caplog) -> None:
    samples = [PNG["rgb"](tmp_path / "a.png"), PNG["grey"](tmp_path / "b.png")]
    found = decoded(samples, Refusing(decoder, samples[1].image.read_bytes()))
    for image, sample in zip(found, samples, strict=True):
        np.testing.assert_array_equal(image, read_image(sample.image))


def test_plain_files_are_handed_on_as_they_are(tmp_path: Path) -> None:
    """Else the faster decoder would never see one."""
    plain = {"rgb", "grey", "rgba", "icc profile", "jpeg by another name"}
    for name, make in PNG.items():
        picture = read_picture(make(tmp_path / "x.png").image)
        assert (picture.content.ndim == 1) == (name in plain), name
        assert picture.size == SIZE


def test_a_consumer_that_stops_early_leaves_nothing_running(decoder: Decoder, tmp_path: Path) -> None:
    samples = [PNG["rgb"](tmp_path / "x.png")] * (4 * decoder.batch)
    images = decode_all(samples, SIZE, TABLE, decoder)
    next(images)
    images.close()
    np.testing.assert_array_equal(decoded(samples[:1], decoder)[0], RGB)
