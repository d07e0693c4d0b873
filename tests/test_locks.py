"""Who may write where: one process, whatever the file system offers, and no link is followed."""

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_config

from meal_gpu import locks
from meal_gpu.errors import InputError
from meal_gpu.locks import kind, locked

SHIM = """
#include <errno.h>
#include <stdlib.h>
int flock(int file, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
HOLD = """
import sys
from pathlib import Path
from meal_gpu.locks import locked
with locked(Path(sys.argv[1]), "works here"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def without_flock(tmp_path_factory) -> dict[str, str]:
    """The environment of a process whose file systems know no `flock`."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a C compiler and LD_PRELOAD take flock away from a process")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c"], check=True)
    return {**os.environ, "LD_PRELOAD": str(folder / "shim.so"), "FLOCK_ERRNO": str(errno.ENOSYS)}


def hold(file: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that has the lock, until its standard input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], env=environment, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n", process.communicate()[1]
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("", timeout=60)


@pytest.fixture
def no_flock(monkeypatch):
    """This process's file systems know no `flock`."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_one_process_at_a_time(tmp_path, without_flock, flock):
    environment = dict(os.environ) if flock else without_flock
    first = hold(tmp_path / ".lock", environment)
    second = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], env=environment, text=True,
                            input="", capture_output=True, check=False)
    assert f"Another process works here (process {first.pid} on " in second.stderr
    assert "wait for it, or stop it first" in second.stderr
    end(first)
    end(hold(tmp_path / ".lock", environment))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_killed_process_holds_nothing(tmp_path, without_flock):
    for environment in (dict(os.environ), without_flock):
        first = hold(tmp_path / ".lock", environment)
        first.kill()
        first.wait()
        end(hold(tmp_path / ".lock", environment))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_run_where_the_file_system_has_no_locks(tmp_path, without_flock):
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_config(tmp_path, **{"query.strategy": "random", "query.rounds": 0}).dump())
    ran = subprocess.run([sys.executable, "-m", "meal_gpu.cli", "run", str(config), "--out", str(tmp_path / "run")],
                         env=without_flock, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "(Function not implemented): the file .lock.held stands in for one" in ran.stderr
    assert not list(tmp_path.rglob("*.held"))


def test_only_busy_means_another_process(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(InputError, match=r"\.lock cannot be locked: Input/output error"), \
            locked(tmp_path / ".lock", "is here", wait_s=60):
        raise AssertionError


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_file_stands_in(tmp_path, monkeypatch, caplog, number):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    caplog.set_level("INFO", "meal_gpu")
    with locked(tmp_path / ".lock", "is here"):
        holder = json.loads((tmp_path / ".lock.held").read_text())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        with pytest.raises(InputError, match=rf"Another process is here \(process {os.getpid()} on"), \
                locked(tmp_path / ".lock", "is here"):
            raise AssertionError
    assert not (tmp_path / ".lock.held").exists()
    assert len(caplog.messages) == 1
    assert os.strerror(number) in kind(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def leave(file: Path, **changes: object) -> Path:
    """A stand-in that somebody has left."""
    held = file.with_name(".lock.held")
    held.write_text(json.dumps({**locks._me(), **changes}))
    return held


def gone() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_process_left_is_taken_over(tmp_path, no_flock, caplog):
    caplog.set_level("INFO", "meal_gpu")
    leave(tmp_path / ".lock", pid=gone())
    with locked(tmp_path / ".lock", "is here"):
        pass
    assert any("was left by process" in line for line in caplog.messages)
    leave(tmp_path / ".lock", pid=1, since="1 tick after another start")  # its number belongs to somebody else now
    with locked(tmp_path / ".lock", "is here"):
        pass
    (tmp_path / ".lock.held.taken").mkdir()  # killed while taking over
    os.utime(tmp_path / ".lock.held.taken", (0, 0))
    leave(tmp_path / ".lock", pid=gone())
    with locked(tmp_path / ".lock", "is here"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("changes", [{"host": "node7"}, {"system": "another start of this machine"}])
def test_what_another_machine_left_is_for_people_to_judge(tmp_path, no_flock, changes):
    held = leave(tmp_path / ".lock", pid=gone(), **changes)
    with pytest.raises(InputError, match=rf"if it runs no more, delete {held} and start again"), \
            locked(tmp_path / ".lock", "is here"):
        raise AssertionError
    assert held.exists()


def test_a_stand_in_that_says_nothing(tmp_path, no_flock, monkeypatch):
    monkeypatch.setattr(locks, "WRITTEN_S", 0.3)
    held = tmp_path / ".lock.held"
    for content in (b"", b"[1]", b"\xff", b'{"pid": "x", "host": 1}'):
        held.write_bytes(content)
        with pytest.raises(InputError, match=rf"If none does, delete that file|delete {held}"), \
                locked(tmp_path / ".lock", "is here"):
            raise AssertionError


def test_a_lock_that_is_waited_for(tmp_path, without_flock, caplog):
    caplog.set_level("INFO", "meal_gpu")
    first = hold(tmp_path / ".lock", dict(os.environ))
    start = time.monotonic()
    with pytest.raises(InputError, match="works"), \
            locked(tmp_path / ".lock", "works", waiting="Waiting for it.", wait_s=0.5):
        raise AssertionError
    assert time.monotonic() - start >= 0.5
    assert caplog.messages == ["Waiting for it."]
    end(first)


def test_no_link_is_followed_and_nothing_cut_off(tmp_path):
    treasure = tmp_path / "treasure"
    treasure.write_text("mine")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").symlink_to(treasure)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".lock").mkdir()
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / ".lock")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".lock").symlink_to("nowhere")
    for name, what in (("a", "a link"), ("b", "a directory"), ("c", "no ordinary file"), ("d", "a link")):
        with pytest.raises(InputError, match=rf"\.lock is {what}, and a lock is to be there: move it away"), \
                locked(tmp_path / name / ".lock", "is here"):
            raise AssertionError
    assert not (tmp_path / "d" / "nowhere").exists()
    os.link(treasure, tmp_path / "hard")
    with locked(tmp_path / "hard", "is here"):
        pass
    assert treasure.read_text() == "mine"
