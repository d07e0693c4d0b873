"""Decode a data set once into a store of raw uint8 pixels that later runs memory-map.

A store is built beside its final place and renamed when complete, so a store that exists is whole. What a killed build
had finished is in ``journal.jsonl``, each line with its checksums, and is taken over after these have been compared.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .config import DataConfig
from .datasets import Dataset, Sample, cache_dir, open_dataset
from .decode import decode_all
from .errors import InputError
from .store import FILES, FORMAT, Size, Store, checksums_of, read_manifest, shapes_of
from .timing import Progress, no_progress

_log = logging.getLogger("meal_gpu")


@dataclass(frozen=True, eq=False)
class Stores:
    """A data set and its decoded splits; ``val`` is None where there is none."""

    dataset: Dataset
    train: Store
    val: Store | None


def ingest(data: DataConfig, progress: Progress = no_progress) -> Stores:
    """Open the stores of a data set, after building those that are missing, stale or damaged.

    A build that was killed is continued. Of two processes that want one store, the second waits for the first.
    Calls ``progress("ingest train", done, total)``, in images. Raises `InputError` for whatever is wrong with the
    data, and when the disk is full: what is decoded by then is kept.
    """
    dataset = open_dataset(data)
    train, val = (_open_or_build(_plan(dataset, split, samples, data), progress) if samples else None
                  for split, samples in (("train", dataset.train), ("val", dataset.val)))
    assert train is not None  # open_dataset refuses an empty training split
    return Stores(dataset, train, val)


# --- what a store should be -------------------------------------------------------------------------------------------

_JOURNAL = "journal.jsonl"


@dataclass(frozen=True, eq=False)
class _Plan:
    """A store as it should be, judged by the source files as they are now."""

    path: Path
    split: str
    samples: tuple[Sample, ...]
    size: Size
    to_class: np.ndarray
    settings: dict[str, Any]
    stamps: list[list[int]]
    """Per image: size in bytes and time of change in ns of the image file and, where there is one, of the mask."""

    @property
    def names(self) -> list[str]:
        return [sample.name for sample in self.samples]

    @property
    def parts(self) -> int:
        """Data files: 1 without masks, 2 with."""
        return 1 if self.samples[0].mask is None else 2

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of one image in each data file."""
        return tuple(int(np.prod(shape)) for shape in shapes_of(1, self.size))[: self.parts]


def _plan(dataset: Dataset, split: str, samples: tuple[Sample, ...], data: DataConfig) -> _Plan:
    def directory(files: list[Path]) -> str:
        return os.path.commonpath([os.path.abspath(file.parent) for file in files])

    masks = [sample.mask for sample in samples if sample.mask is not None]
    settings = {
        "format": FORMAT, "dataset": dataset.name, "split": split, "image_size": list(data.image_size),
        "images": directory([sample.image for sample in samples]), "masks": directory(masks) if masks else None,
        "to_class": dataset.to_class.tobytes().hex(),
    }
    key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    height, width = data.image_size
    path = cache_dir(data).absolute() / f"{dataset.name}-{split}-{height}x{width}-{key}"
    return _Plan(path, split, samples, data.image_size, dataset.to_class, settings, [_stamp(s) for s in samples])


def _stamp(sample: Sample) -> list[int]:
    stamp = []
    for file in (sample.image, sample.mask):
        if file is not None:
            try:
                status = os.stat(file)
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}. Restore the file.") from None
            stamp += [status.st_size, status.st_mtime_ns]
    return stamp


def _open_fresh(plan: _Plan) -> tuple[Store | None, str]:
    """The store if it is what the plan asks for, else the reason why it is not."""
    try:
        manifest = read_manifest(plan.path)
        if manifest.get("settings") != plan.settings:
            return None, "its settings differ"
        if manifest.get("names") != plan.names:
            return None, "files were added or removed"
        for sample, now, then in zip(plan.samples, plan.stamps, manifest.get("stamps", []), strict=True):
            if now != then:
                return None, f"the files of {sample.name} have changed"
        return Store.from_manifest(plan.path, manifest), ""
    except FileNotFoundError:
        return None, "" if not plan.path.exists() else "a file of it is missing"
    except (OSError, ValueError, TypeError) as error:
        return None, f"it is damaged: {error}"


def _open_or_build(plan: _Plan, progress: Progress) -> Store:
    store, _ = _open_fresh(plan)
    if store is None:
        with _space(plan), _lock(plan.path):
            store, why = _open_fresh(plan)  # another process may just have built it
            if store is None:
                if why:
                    _log.info("The store %s is rebuilt: %s.", plan.path, why)
                _build(plan, progress)
                store = Store.open(plan.path)
    return store


# --- building ---------------------------------------------------------------------------------------------------------


def _build(plan: _Plan, progress: Progress) -> None:
    """Decode what is not decoded yet and put the store in its place. The lock is held."""
    partial, old = (plan.path.with_name(plan.path.name + end) for end in (".partial", ".old"))
    shutil.rmtree(old, ignore_errors=True)  # of a process killed while it replaced a store
    partial.mkdir(exist_ok=True)
    total, start, told = len(plan.samples), time.monotonic(), 0.0
    with _appending(plan, partial) as (files, journal):
        rows = _finished(plan, files, journal)
        if rows:
            _log.info("Continuing the store %s: %d of %d images are there.", plan.path, len(rows), total)
        _check_space(plan, sum(os.fstat(file.fileno()).st_blocks * 512 for file in files))
        todo = [i for i in range(total) if i not in rows]
        taken = len(rows)
        for i, decoded in zip(todo, decode_all([plan.samples[i] for i in todo], plan.size, plan.to_class), strict=True):
            for file, length, pixels in zip(files, plan.row_bytes, decoded, strict=False):
                assert pixels is not None
                _write_at(file, pixels, i * length)
            rows[i] = checksums_of(*decoded)
            # Without buffer: a line is in the file before the next image is begun, whatever happens to this process.
            journal.write(json.dumps([i, plan.stamps[i], rows[i]]).encode() + b"\n")
            now = time.monotonic()
            if now - told > 0.05 or len(rows) == total:
                told = now
                progress(f"ingest {plan.split}", len(rows), total)
        for file in files:
            os.fsync(file.fileno())
    manifest = {"format": FORMAT, "settings": plan.settings, "image_size": plan.size, "names": plan.names,
                "stamps": plan.stamps, "checksums": [rows[i] for i in range(total)]}
    with open(partial / "manifest.json", "wb") as out:
        out.write(json.dumps(manifest, separators=(",", ":")).encode())
        out.flush()
        os.fsync(out.fileno())
    _sync(partial)
    if plan.path.exists():
        plan.path.rename(old)  # whoever has the old one mapped keeps it
    partial.rename(plan.path)
    _sync(plan.path.parent)
    (plan.path / _JOURNAL).unlink()
    shutil.rmtree(old, ignore_errors=True)
    _log.info("Decoded %d images into %s in %.1f s.", total - taken, plan.path, time.monotonic() - start)


@contextmanager
def _appending(plan: _Plan, partial: Path) -> Iterator[tuple[list[BinaryIO], BinaryIO]]:
    """The data files and the journal of a build, open for reading and writing, unbuffered."""
    opened: list[BinaryIO] = []
    try:
        for name in (*FILES[: plan.parts], _JOURNAL):
            file = os.open(partial / name, os.O_RDWR | os.O_CREAT, 0o666)
            opened.append(os.fdopen(file, "r+b", buffering=0))
        yield opened[:-1], opened[-1]
    finally:
        for stream in opened:
            stream.close()


def _finished(plan: _Plan, files: list[BinaryIO], journal: BinaryIO) -> dict[int, list[int]]:
    """Checksums of the images that an earlier build had finished; leaves the journal with exactly those.

    The pixels are read again and compared, so that a build interrupted in any way, by a power cut too, is continued
    without a wrong pixel.
    """
    names = hashlib.blake2b("\n".join(plan.names).encode(), digest_size=16).hexdigest()
    header = json.dumps({"settings": plan.settings, "names": names}).encode()
    lines = journal.read().split(b"\n")
    rows: dict[int, list[int]] = {}
    if lines[0] == header:
        for line in lines[1:-1]:  # what follows the last newline is torn
            try:
                i, stamp, sums = json.loads(line)
                found = [zlib.crc32(os.pread(file.fileno(), length, i * length))
                         for file, length in zip(files, plan.row_bytes, strict=True)]
                if stamp == plan.stamps[i] and sums == found:
                    rows[i] = sums
            except (ValueError, TypeError, IndexError):
                continue
    journal.seek(0)
    journal.truncate()
    journal.write(b"".join(line + b"\n" for line in (
        header, *(json.dumps([i, plan.stamps[i], sums]).encode() for i, sums in rows.items()))))
    return rows


def _write_at(file: BinaryIO, pixels: np.ndarray, offset: int) -> None:
    # Not through a memory map: there a full disk kills the process instead of raising an error.
    view = np.ascontiguousarray(pixels).data.cast("B")
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_space(plan: _Plan, there: int) -> None:
    """Raise `InputError` when the disk cannot take what is still missing."""
    if sum(plan.row_bytes) * len(plan.samples) - there > shutil.disk_usage(plan.path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _space(plan: _Plan) -> Iterator[None]:
    """Turn errors of writing below the store directory into `InputError`."""
    place = plan.path.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            need = sum(plan.row_bytes) * len(plan.samples)
            raise InputError(
                f"No space for decoded images in {place} ({error.strerror}): the {plan.split} store of "
                f"{len(plan.samples)} images needs {need / 1e6:,.1f} MB, {shutil.disk_usage(place).free / 1e6:,.1f} MB "
                "are free. Free some, or set data.store to a directory on a larger disk. What is decoded is kept; the "
                "next start goes on from there.") from None
        raise InputError(f"Decoded images cannot be written below {place}: {error.strerror or error} ("
                         f"{error.filename or plan.path}). Set data.store to a directory that can be written."
                         ) from None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock of a store; waits while another process builds it. The kernel releases it when a process dies."""
    with open(path.with_name(path.name + ".lock"), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("Waiting for another process that builds %s.", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
