"""A file is there whole, or it is not there."""

import os
import stat
import subprocess
import sys

import pytest

from meal_gpu.files import append_durably, write_atomic


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
