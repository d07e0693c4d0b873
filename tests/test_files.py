"""A file is there whole, or it is not there."""

import json
import os
import stat
import subprocess
import sys

import pytest

from meal_gpu.errors import InputError
from meal_gpu.files import (
    Seal,
    append_durably,
    open_object,
    own_directory,
    read_given,
    read_own,
    read_seal,
    seal_object,
    write_atomic,
)


def test_makes_directories_and_writes_bytes_or_a_stream(tmp_path):
    write_atomic(tmp_path / "a" / "b" / "c.bin", b"one")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"one"
    write_atomic(tmp_path / "a" / "b" / "c.bin", lambda stream: stream.write(b"two"))
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"two"
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["c.bin"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [True, False])
def test_an_exception_leaves_what_was_there(tmp_path, error, existing):
    file = tmp_path / "kept"
    if existing:
        file.write_bytes(b"old")

    def fail(stream):
        stream.write(b"half of the n")
        stream.flush()
        raise error

    with pytest.raises(error):
        write_atomic(file, fail)
    assert [entry.name for entry in tmp_path.iterdir()] == (["kept"] if existing else [])
    if existing:
        assert file.read_bytes() == b"old"


def test_a_reader_never_sees_a_half(tmp_path):
    """While a new version is being written, the old one is what is read."""
    file = tmp_path / "f"
    write_atomic(file, b"old")
    seen = []

    def slow(stream):
        for part in (b"new ", b"content"):
            stream.write(part)
            stream.flush()
            seen.append(file.read_bytes())

    write_atomic(file, slow)
    assert seen == [b"old", b"old"]
    assert file.read_bytes() == b"new content"


def test_a_kill_leaves_the_old_file(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"old")
    program = ("import os, signal, sys; from pathlib import Path; from meal_gpu.files import write_atomic\n"
               "def die(stream):\n    stream.write(b'new'); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
               "write_atomic(Path(sys.argv[1]), die)")
    assert subprocess.run([sys.executable, "-c", program, str(file)], check=False).returncode == -9
    assert file.read_bytes() == b"old"


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o000])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "f", b"")
        assert os.umask(mask) == mask, "the umask must be left as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~mask


def test_append_adds_and_creates(tmp_path):
    append_durably(tmp_path / "log", b"one\n")
    append_durably(tmp_path / "log", b"two\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_what_is_a_directory_is_not_replaced(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError, match="d"):
        write_atomic(tmp_path / "d", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


# --- what is opened ---------------------------------------------------------------------------------------------------


def put(file, what):
    if what == "directory":
        file.mkdir()
    elif what == "fifo":
        os.mkfifo(file)
    elif what == "device":
        file.symlink_to("/dev/zero")
    elif what == "link":
        (file.parent / "precious").write_bytes(b"precious")
        file.symlink_to(file.parent / "precious")


@pytest.mark.parametrize(("what", "told"), [("directory", "a directory"), ("fifo", "a named pipe"),
                                            ("device", "symbolic link"), ("link", "symbolic link")])
@pytest.mark.parametrize("use", [read_own, lambda file: append_durably(file, b"x")])
def test_own_files_are_regular_and_never_links(tmp_path, what, told, use):
    file = tmp_path / "f"
    put(file, what)
    with pytest.raises(InputError, match=rf"{file} is {'a ' if 'a ' not in told else ''}{told}"):
        use(file)
    if what == "link":
        assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize(("what", "told"), [("directory", "a directory"), ("fifo", "a named pipe"),
                                            ("device", "a device")])
def test_given_files_are_regular(tmp_path, what, told):
    put(tmp_path / "f", what)
    with pytest.raises(InputError, match=rf"f is {told}, where a file belongs"):
        read_given(tmp_path / "f", 100, "x allows")


def test_sizes_are_known_before_anything_is_read(tmp_path):
    put(tmp_path / "f", "link")
    assert read_given(tmp_path / "f", 8, "x allows") == b"precious"
    with pytest.raises(InputError, match=r"f has 8 bytes, and x allows 7"):
        read_given(tmp_path / "f", 7, "x allows")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="1,099,511,627,776 bytes"):
        read_own(tmp_path / "large")


def test_writing_replaces_a_link(tmp_path):
    put(tmp_path / "f", "link")
    write_atomic(tmp_path / "f", b"new")
    assert not (tmp_path / "f").is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_own_directories_are_no_links(tmp_path):
    assert own_directory(tmp_path / "a" / "b").is_dir()
    (tmp_path / "c").symlink_to(tmp_path / "a")
    (tmp_path / "d").symlink_to(tmp_path / "gone")
    (tmp_path / "e").write_text("")
    for name, told in (("c", "symbolic link"), ("d", "symbolic link"), ("e", "no directory")):
        with pytest.raises(InputError, match=told):
            own_directory(tmp_path / name)


# --- seals ------------------------------------------------------------------------------------------------------------


def test_any_byte_of_a_sealed_object_counts():
    line = seal_object(b'{"a": 1, "b": [2]}', "before")
    assert open_object(line, "before")[::2] == (b'{"a": 1, "b": [2]}', True)
    assert json.loads(line)["a"] == 1
    assert not open_object(line, "other")[2]
    for i in range(len(line)):
        changed = bytearray(line)
        changed[i] ^= 1
        assert open_object(bytes(changed), "before")[2] is not True
    assert open_object(b'{"a": 1}')[2] is None


def test_a_seal_is_a_comment_and_covers_the_rest():
    text = "a: 1\nb: 2\n"
    content = Seal.of(text, "0123456789abcdef", True).written(text)
    assert read_seal(content) == (Seal.of(text, "0123456789abcdef", True), text.encode())
    assert read_seal(text.encode()) == (None, text.encode())
    assert Seal.of("a: 2\n", "x").digest != Seal.of(text, "x").digest
