"""Build a store: decode what is missing, keep what is there, never leave a wrong pixel.

A store is built beside its final place and renamed when complete, so a store that exists is whole. What a killed build
had finished is in ``journal.jsonl``, each line with its checksums, and is taken over after these have been compared.
"""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError, all_of
from ..files import open_own, own_directory, parse_json, seal_object, sync_directory, write_atomic
from ..grid import Size
from ..locks import locked
from ..timing import Progress
from .datasets import Sample
from .decode import Decoded, decode_each, open_decoder
from .fit import empty
from .maskfile import differing
from .rules import Rules
from .store import FILES, FORMAT, Store, checksums_of, read_manifest, shapes_of

_log = logging.getLogger("meal_gpu")
_JOURNAL = "journal.jsonl"


@dataclass(frozen=True, eq=False)
class Plan:
    """A store as it should be, judged by the source files as they are now."""

    path: Path
    split: str
    samples: tuple[Sample, ...]
    size: Size
    rules: Rules
    settings: dict[str, Any]
    stamps: list[list[int]]
    """Per image: size in bytes and time of change in ns of the image file and, where there is one, of the mask. Empty
    for an image whose file is gone."""
    beside: Path | None = None
    """A store of the same files in another order, whose pixels need not be decoded again."""

    @property
    def names(self) -> list[str]:
        return [sample.name for sample in self.samples]

    @property
    def parts(self) -> int:
        """Data files: 1 without masks, 2 with."""
        return 2 if any(sample.mask is not None for sample in self.samples) else 1

    def counted(self, i: int) -> bool:
        """Whether pixels of an image's mask are labels: where it has none, void fills its place."""
        return not self.samples[i].gone and self.samples[i].mask is not None

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of one image in each data file."""
        return tuple(int(np.prod(shape)) for shape in shapes_of(1, self.size))[: self.parts]


@dataclass(frozen=True, eq=False)
class Row:
    """What the manifest says of an image that stands in the data files."""

    checksums: list[int]
    source: list[int] | None
    """Height, width and EXIF orientation of the file; None in a row of a store that did not keep them."""


class Counts:
    """Pixels per mask value, and images that hold it, summed up while the masks are in memory anyway."""

    def __init__(self) -> None:
        self.pixels, self.images = np.zeros(256, np.int64), np.zeros(256, np.int64)

    def add(self, mask: np.ndarray | None) -> None:
        if mask is not None:
            found = np.bincount(mask.ravel(), minlength=256)
            self.pixels += found
            self.images += found > 0

    def as_lists(self) -> list[list[int]]:
        return [self.pixels.tolist(), self.images.tolist()]


def build(plan: Plan, progress: Progress) -> None:
    """Write the store of a plan and put it in its place. The caller is `alone` and handles errors by `writing`."""
    partial, old = (plan.path.with_name(plan.path.name + end) for end in (".partial", ".old"))
    _discard(old)  # of a process killed while it replaced a store
    own_directory(partial)
    total, start, told = len(plan.samples), time.monotonic(), 0.0
    with _opened(plan, partial) as (files, journal):
        counts = Counts()
        rows, problems = _finished(plan, files, journal, counts), list[InputError]()
        if rows:
            _log.info("Continuing the store %s: %d of %d images are there.", plan.path, len(rows), total)
        _check_space(plan, sum(os.fstat(file.fileno()).st_blocks * 512 for file in files))
        for i, decoded in _pixels(plan, [i for i in range(total) if i not in rows]):
            if isinstance(decoded, InputError):
                problems.append(decoded)
                continue
            image, mask, source = decoded
            for file, length, pixels in zip(files, plan.row_bytes, (image, mask), strict=False):
                assert pixels is not None
                _write_at(file, np.ascontiguousarray(pixels).data.cast("B"), i * length)
            rows[i] = Row(checksums_of(image, mask), source)
            counts.add(mask if plan.counted(i) else None)
            # Unbuffered: the line is in the file before the next image is begun, whatever happens to this process.
            line = json.dumps([i, plan.stamps[i], rows[i].checksums, source]).encode() + b"\n"
            _write_at(journal, memoryview(line), os.fstat(journal.fileno()).st_size)
            now = time.monotonic()
            if now - told > 0.05 or len(rows) == total:
                told = now
                progress(f"ingest {plan.split}", len(rows), total)
        if problems:
            raise all_of(problems, len({sample.image for sample in plan.samples}), "images")
        for file in files:
            os.fsync(file.fileno())
    manifest = {"format": FORMAT, "settings": plan.settings, "image_size": plan.size, "names": plan.names,
                "stamps": plan.stamps, "checksums": [rows[i].checksums for i in range(total)],
                "sources": [rows[i].source for i in range(total)]}
    if plan.parts == 2:
        manifest["counts"] = counts.as_lists()
    write_atomic(partial / "manifest.json", seal_object(json.dumps(manifest, separators=(",", ":")).encode()))
    if os.path.lexists(plan.path):
        plan.path.rename(old)  # whoever has the old one mapped keeps it
    partial.rename(plan.path)
    sync_directory(plan.path.parent)
    (plan.path / _JOURNAL).unlink()
    _discard(old)
    _log.info("Built the store %s of %d images in %.1f s.", plan.path, total, time.monotonic() - start)


@contextmanager
def _opened(plan: Plan, partial: Path) -> Iterator[tuple[list[BinaryIO], BinaryIO]]:
    """The data files and the journal of a build, open for reading and writing, unbuffered."""
    opened: list[BinaryIO] = []
    try:
        for name in (*FILES[: plan.parts], _JOURNAL):
            opened.append(open_own(partial / name, os.O_RDWR | os.O_CREAT, buffering=0))
        yield opened[:-1], opened[-1]
    finally:
        for stream in opened:
            stream.close()


def _finished(plan: Plan, files: list[BinaryIO], journal: BinaryIO, counts: Counts) -> dict[int, Row]:
    """Rows of the images that an earlier build of the same plan had finished; all else is cut off.

    The pixels are read again and compared, so that a build interrupted in any way, by a power cut too, is continued
    without a wrong pixel.
    """
    names = hashlib.blake2b("\n".join(plan.names).encode(), digest_size=16).hexdigest()
    header = json.dumps({"settings": plan.settings, "names": names}).encode()
    content = journal.read()
    lines = content.split(b"\n")
    if lines[0] != header:
        for file in (*files, journal):
            file.truncate(0)
        _write_at(journal, memoryview(header + b"\n"), 0)
        return {}
    journal.truncate(len(content) - len(lines[-1]))  # what follows the last newline is torn
    rows: dict[int, Row] = {}
    for line in lines[1:-1]:
        try:
            i, stamp, sums, source = parse_json(line)
            if not 0 <= i < len(plan.samples):
                continue
            parts = [os.pread(file.fileno(), length, i * length)
                     for file, length in zip(files, plan.row_bytes, strict=True)]
            if stamp == plan.stamps[i] and sums == list(map(zlib.crc32, parts)) and i not in rows:
                rows[i] = Row(sums, source)
                counts.add(np.frombuffer(parts[1], np.uint8) if len(parts) == 2 and plan.counted(i) else None)
        except (ValueError, TypeError, IndexError, OSError):  # a damaged line: its image is decoded again
            continue
    return rows


Pixels = tuple[np.ndarray, np.ndarray | None, list[int] | None]
"""Image, mask, and the source as in `Row`."""


def _pixels(plan: Plan, todo: Sequence[int]) -> Iterator[tuple[int, Pixels | InputError]]:
    """Images and masks: from the stale store where the source files are those it was made from, else decoded."""
    taken = set()
    for path in filter(None, (plan.path, plan.beside)):
        old, place = _stale(plan, path)
        for i in todo if old is not None else ():
            sample = plan.samples[i]
            k = None if i in taken else place.get((sample.name,) if sample.gone else (sample.name, *plan.stamps[i]))
            if old is not None and k is not None:
                row = old.images[k], None if old.masks is None else old.masks[k]
                if checksums_of(*row) == old.checksums[k]:
                    taken.add(i)
                    yield i, (*row, old.sources[k] if old.sources else None)
    if taken:
        _log.info("Taken over from the previous store: %d unchanged images.", len(taken))
    for i in todo:
        if plan.samples[i].gone and i not in taken:  # nobody has its pixels any more, and nobody is asked for them
            taken.add(i)
            image, mask = empty(plan.size)
            yield i, (image, mask if plan.parts == 2 else None, None)
    rest = [i for i in todo if i not in taken]
    if rest:
        decoder = open_decoder(plan.settings["decoder"], plan.size)
        samples, palettes = [plan.samples[i] for i in rest], dict[int, tuple[int, str]]()
        for i, decoded in zip(rest, decode_each(samples, plan.size, plan.rules, decoder), strict=True):
            if not isinstance(decoded, InputError) and decoded.mask is None and plan.parts == 2:
                decoded = decoded._replace(mask=empty(plan.size)[1])  # nobody has labelled this one
            yield i, decoded if isinstance(decoded, InputError) else _checked(decoded, palettes, plan.samples[i])


def _checked(decoded: Decoded, palettes: dict[int, tuple[int, str]], sample: Sample) -> Pixels | InputError:
    problem = differing(palettes, decoded.source.palette, str(sample.mask))
    source = decoded.source
    return InputError(problem) if problem else (decoded.image, decoded.mask, [*source.size, source.turn])


def _stale(plan: Plan, path: Path) -> tuple[Store | None, dict[tuple[Any, ...], int]]:
    """The store that is to be replaced, or that of another order, and where its images are: by name and stamps, and by
    name alone. None where it is not readable, or of other settings."""
    try:
        manifest = read_manifest(path)
        if _unordered(manifest["settings"]) != _unordered(plan.settings):
            return None, {}
        store = Store.from_manifest(path, manifest)
        if len(store.checksums[0]) != plan.parts:
            return None, {}
        stamps = manifest["stamps"]
        place: dict[tuple[Any, ...], int] = {(name,): k for k, name in enumerate(store.names)}
        place |= {(name, *stamp): k for k, (name, stamp) in enumerate(zip(store.names, stamps, strict=True)) if stamp}
        return store, place
    except (OSError, ValueError, TypeError, KeyError, InputError):
        return None, {}


def _unordered(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "order"}


def _discard(path: Path) -> None:
    """Remove what stands in a store's place; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_at(file: BinaryIO, content: memoryview, offset: int) -> None:
    # Not through a memory map: there a full disk kills the process instead of raising an error.
    while content:
        written = os.pwrite(file.fileno(), content, offset)
        content, offset = content[written:], offset + written


def _check_space(plan: Plan, there: int) -> None:
    """Raise `InputError` when the disk cannot take what is still missing."""
    if sum(plan.row_bytes) * len(plan.samples) - there > shutil.disk_usage(plan.path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def writing(plan: Plan) -> Iterator[None]:
    """Turn errors of writing below the store directory into `InputError`."""
    place = plan.path.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            need = sum(plan.row_bytes) * len(plan.samples)
            there = next(folder for folder in (place, *place.parents) if folder.exists())
            raise InputError(
                f"No space for decoded images in {place} ({error.strerror}): the {plan.split} store of "
                f"{len(plan.samples)} images needs {need / 1e6:,.1f} MB, {shutil.disk_usage(there).free / 1e6:,.1f} MB "
                "are free. Free some, or set data.store to a directory on a larger disk. What is decoded is kept; the "
                "next start goes on from there.") from None
        raise InputError(f"Decoded images cannot be written below {place}: {error.strerror or error} ("
                         f"{error.filename or plan.path}). Set data.store to a directory that can be written."
                         ) from None


def alone(plan: Plan) -> AbstractContextManager[None]:
    """Hold the lock of a store; waits while another process builds it."""
    return locked(plan.path.with_name(plan.path.name + ".lock"), f"builds {plan.path}",
                  f"Waiting for another process that builds {plan.path}.", math.inf)
