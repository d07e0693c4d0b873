"""Files that are believed: written whole or not at all, sealed by checksums, and opened without being led elsewhere.

What a run, a store, a cache or a sweep leaves behind is read again later, perhaps by others, perhaps after a disk has
failed or somebody has edited it. Here stands how it is written (temporary file, fsync, rename), how it is opened
(regular files alone, never through a link that lies in their place, no more bytes than expected), and how a change is
noticed (a checksum in every line and every manifest, a digest in the first line of a config).
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from .errors import InputError, first_line

PathLike = str | os.PathLike[str]

LINES = 2**30
"""Bytes that a file of JSON or YAML which a run wrote may have."""
_CHECK = re.compile(rb', "check": "([0-9a-f]{16})"\}\s*$')
_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
          stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


# --- writing ----------------------------------------------------------------------------------------------------------


def write_atomic(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write bytes, or what a function writes into a stream, to a temporary name; fsync; rename. Makes the directory.

    A reader of ``path`` sees either the old file or the whole new one. An error leaves nothing behind. A link at
    ``path`` is replaced, what it points to is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files for the owner alone
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def append_durably(path: Path, line: bytes) -> None:
    """Append and fsync: when this returns, the line survives a power cut."""
    with open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename or a new file in a directory durable, where directories can be synced."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def own_directory(path: Path) -> Path:
    """Make a directory that what is written here may go into. Raises `InputError` where it is a link or no directory.

    A directory that was received, or that several people share, could lead elsewhere through one of its entries.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if not path.is_symlink():
            raise InputError(f"{path} is there and no directory: move it away.") from None
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link (to {os.readlink(path)}), and nothing is written through one: put "
                         "the directory itself in its place, or remove the link.")
    return path


def remove_leftovers(directory: Path) -> None:
    """Remove temporary files that a kill left in a directory and below. Hold the lock of whoever writes there."""
    for folder, _, names in os.walk(directory):
        for name in names:
            if _LEFTOVER.fullmatch(name):
                with contextlib.suppress(OSError):
                    os.unlink(Path(folder) / name)


# --- opening ----------------------------------------------------------------------------------------------------------


def open_own(path: PathLike, flags: int = os.O_RDONLY, buffering: int = -1) -> BinaryIO:
    """Open a file that meal-gpu wrote: a regular one, not through a link. Raises `InputError` where it is something
    else, and `OSError` as `open` does."""
    try:
        return _stream(own_handle(path, flags), flags, buffering)
    except NoFileError as error:
        if stat.S_ISLNK(error.mode):
            raise InputError(f"{path} is a symbolic link (to {os.readlink(path)}), and what a run writes is never one: "
                             "put the file itself in its place, or remove the link.") from None
        raise _no_file(path, error.mode) from None


class NoFileError(Exception):
    """Something else stands where a file was to be opened."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        """As of `os.lstat`."""
        super().__init__(oct(mode))


def own_handle(path: PathLike, flags: int) -> int:
    """A file as `os.open` gives it, made with 0o666: a regular one, not through a link that lies in its place, and
    without waiting for whoever is at the other end of a pipe. Raises `NoFileError` where it is something else."""
    never_elsewhere = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags | never_elsewhere, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO):
            raise
        raise NoFileError(os.lstat(path).st_mode) from None
    return _checked(handle)


def read_own(path: PathLike, at_most: int = LINES) -> bytes:
    """The bytes of a file that meal-gpu wrote; raises as `open_own`, and `InputError` for more than ``at_most``."""
    with open_own(path) as stream:
        return _content(stream, path, at_most)


def read_given(path: PathLike, at_most: int, limit: str) -> bytes:
    """The bytes of a file that a user names: regular, links allowed. ``limit`` says where ``at_most`` comes from."""
    try:
        handle = _checked(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
    except NoFileError as error:
        raise _no_file(path, error.mode) from None
    with _stream(handle, os.O_RDONLY) as stream:
        return _content(stream, path, at_most, limit)


def _checked(handle: int) -> int:
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise NoFileError(mode)
    return handle


def _stream(handle: int, flags: int, buffering: int = -1) -> BinaryIO:
    try:
        modes = {os.O_RDONLY: "rb", os.O_RDWR: "r+b", os.O_WRONLY: "ab" if flags & os.O_APPEND else "wb"}
        return cast(BinaryIO, os.fdopen(handle, modes[flags & (os.O_RDONLY | os.O_RDWR | os.O_WRONLY)], buffering))
    except BaseException:
        os.close(handle)
        raise


def _no_file(path: PathLike, mode: int) -> InputError:
    return InputError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, where a file belongs: put the "
                      "file there, or remove it.")


def _content(stream: BinaryIO, path: PathLike, at_most: int, limit: str = "") -> bytes:
    length = os.fstat(stream.fileno()).st_size
    if length > at_most:
        raise InputError(f"{path} has {length:,} bytes, and {limit or 'what belongs there has at most'} {at_most:,}. "
                         "Put another file there, or remove it.")
    return stream.read(length)


# --- seals ------------------------------------------------------------------------------------------------------------


def digest(*parts: bytes | str) -> str:
    """16 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
        found.update(b"\0")
    return found.hexdigest()


def seal_object(text: bytes, before: str = "") -> bytes:
    """A JSON object with its checksum as the last key, ``check``. ``before``: the checksum of what stands before it."""
    assert text.startswith(b"{")
    assert len(text) > 2
    return text[:-1] + f', "check": "{digest(before, text)}"}}'.encode()


def open_object(line: bytes, before: str = "") -> tuple[bytes, str, bool | None]:
    """A JSON object as it was before `seal_object`, its checksum, and whether that is the one it has; None without."""
    found = _CHECK.search(line)
    text = line[: found.start()] + b"}" if found else line
    check = digest(before, text)
    return text, check, found and found[1].decode() == check


def parse_json(text: bytes | str) -> Any:
    """``json.loads`` that raises `ValueError` alone."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@dataclass(frozen=True)
class Seal:
    """The first line of a config or a list of points that meal-gpu wrote: a comment to every reader of YAML."""

    name: str
    """Of the run, drawn when it began: the lines of its rounds are chained to it."""
    digest: str
    """Of all that follows the line."""
    edited: bool = False
    """Somebody has edited the run, and it was taken as it is."""

    def written(self, text: str) -> bytes:
        return f"# sealed by meal-gpu: {self.name} {self.digest}{' edited' * self.edited}\n{text}".encode()

    @classmethod
    def of(cls, text: str, name: str, edited: bool = False) -> "Seal":
        return cls(name, digest(text), edited)


_SEAL = re.compile(rb"# sealed by meal-gpu: ([0-9a-f]{16}) ([0-9a-f]{16})( edited)?\n")


def read_seal(content: bytes) -> tuple[Seal | None, bytes]:
    """The seal of a file's content, None where there is none, and what follows it."""
    found = _SEAL.match(content)
    if found is None:
        return None, content
    return Seal(found[1].decode(), found[2].decode(), found[3] is not None), content[found.end() :]


# --- arrays -----------------------------------------------------------------------------------------------------------


def read_arrays(path: PathLike, at_most: int) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file of at most so many bytes unpacked, which its headers say before memory is taken.

    Raises `FileNotFoundError`, and `InputError` for whatever else is wrong with it.
    """
    try:
        with open_own(path) as stream, zipfile.ZipFile(stream) as archive:
            total = sum(member.file_size for member in archive.infolist())
            if total > at_most:
                raise InputError(f"{path} unpacks to {total:,} bytes, and what belongs there has at most {at_most:,}.")
            return dict(_arrays(archive))
    except (FileNotFoundError, InputError):
        raise
    except Exception as error:  # zipfile, zlib, struct, OSError, ValueError: whatever a damaged archive raises
        raise InputError(f"{path} is damaged: {first_line(error)}.") from None


def _arrays(archive: zipfile.ZipFile) -> Iterator[tuple[str, np.ndarray]]:
    for member in archive.infolist():
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"{member.filename} is of an unknown version")
            reads = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = reads(stream)
            length = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if dtype.hasobject or length > member.file_size:
                raise ValueError(f"{member.filename} is not an array of numbers that fits it")
            content = stream.read()  # to the end, so that the archive's checksum is compared
            if len(content) != length:
                raise ValueError(f"{member.filename} is cut off")
            array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
            yield member.filename.removesuffix(".npy"), array


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
