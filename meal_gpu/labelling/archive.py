"""Files that strangers give: read in memory and by name, never unpacked, and never more than is believable."""

import io
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import InputError, first_line
from ..files import open_own, read_given

MOST_BYTES = 2**29
"""Of a file of labels, and of what a zip unpacks to."""
_MOST_MEMBERS = 100_000


class Bundle:
    """Named files of a folder or a zip: those of a folder are read where they lie, links are not followed."""

    def __init__(self, where: str) -> None:
        self.where = where

    def names(self) -> list[str]:
        """With their folders, sorted; hidden ones left out."""
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        raise NotImplementedError

    def within(self, folder: str, suffix: str) -> Iterator[str]:
        """Names directly within a folder, whatever stands above it."""
        for name in self.names():
            path = PurePosixPath(name)
            if path.parent.name == folder and path.suffix.lower() == suffix:
                yield name

    def named(self, base: str) -> str | None:
        """The file of this name, whatever its folder; the highest one."""
        found = [name for name in self.names() if PurePosixPath(name).name == base]
        return min(found, key=lambda name: (name.count("/"), name), default=None)


class Folder(Bundle):
    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def names(self) -> list[str]:
        found = []
        for folder in (self.path, *(entry for entry in sorted(self.path.iterdir()) if self._is_folder(entry))):
            for entry in folder.iterdir():
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    raise InputError(f"{entry} is a symbolic link, and links are not followed here: copy the file "
                                     "there.")
                if entry.is_file():
                    found.append(entry.relative_to(self.path).as_posix())
        return sorted(found)

    @staticmethod
    def _is_folder(entry: Path) -> bool:
        return entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")

    def read(self, name: str) -> bytes:
        with open_own(self.path / name) as stream:
            content = stream.read(MOST_BYTES + 1)
        return _believable(content, f"{self.path / name}")


class Zip(Bundle):
    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(where)
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
        except Exception as error:  # it fails in whatever way the damage leads it to
            raise InputError(f"{where} is no zip that can be read ({first_line(error)}). Export it again.") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        members = self._archive.infolist()
        if len(members) > _MOST_MEMBERS or sum(member.file_size for member in members) > MOST_BYTES:
            raise InputError(f"{where} unpacks to more than {MOST_BYTES:,} bytes or {_MOST_MEMBERS:,} files. Export "
                             "the annotations without the images.")
        for member in members:
            self._add(member)

    def _add(self, member: zipfile.ZipInfo) -> None:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename or (
                not member.filename.isprintable()):
            raise InputError(f"{self.where} holds the name {member.filename!r}, which leads out of it: no tool writes "
                             "such a zip.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{self.where} holds the symbolic link {member.filename!r}: no tool writes such a zip.")
        if member.flag_bits & 1:
            raise InputError(f"{self.where} is encrypted. Export it without a password.")
        if member.filename in self._members:
            raise InputError(f"{self.where} holds {member.filename!r} twice. Export it again.")
        if not member.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in path.parts):
            self._members[member.filename] = member

    def names(self) -> list[str]:
        return sorted(self._members)

    def read(self, name: str) -> bytes:
        try:
            with self._archive.open(self._members[name]) as stream:
                content = stream.read(self._members[name].file_size + 1)
        except Exception as error:  # as above
            raise InputError(f"{self.where}: {name} cannot be read ({first_line(error)}). Export it again.") from None
        return _believable(content, f"{self.where}: {name}")


def read_file(path: Path) -> bytes:
    """Of a file that a user names."""
    try:
        return _believable(read_given(path, MOST_BYTES, "a file of labels may have"), str(path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Give what the labelling tool exported, or a folder of masks."
                         ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _believable(content: bytes, where: str) -> bytes:
    if len(content) > MOST_BYTES:
        raise InputError(f"{where} has more than the {MOST_BYTES:,} bytes that a file of labels may have.")
    if not content:
        raise InputError(f"{where} is empty. Export it again.")
    return content
