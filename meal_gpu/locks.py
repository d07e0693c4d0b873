"""One process at a time in a directory of a run or of a sweep, or at a store: every lock is taken here.

`flock` is asked first: the kernel frees such a lock when its process dies. Some file systems of clusters have none.
There a file that exists only while the lock is held stands in for it, and says who made it: one that was left by a
process of this machine that is gone is taken over, any other is named to the user, who alone can know.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import NoFileError, own_handle

BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""What `flock` says where another process holds the lock."""
MISSING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What it says where the file system has no locks."""
STAND_IN = ".held"
"""Ends the name of the file that stands in for a lock."""
EVERY_S = 0.2
WRITTEN_S = 2.0
"""Within that time whoever made a stand-in has written who he is."""
_log = logging.getLogger("meal_gpu")


@contextmanager
def locked(file: Path, busy: str, waiting: str = "", wait_s: float = 0) -> Iterator[None]:
    """Hold the lock ``file``, which is made where it is not there.

    Parameters
    ----------
    busy
        What another process is doing there, such as "is running in runs/a".
    waiting
        A line to log where it is waited for.
    wait_s
        So long it is waited for; ``math.inf`` for ever.

    Raises
    ------
    InputError
        Where another process has it, and where ``file`` is a link, a directory or anything else than a file.
    OSError
        Where it cannot be made or written.
    """
    handle, give_up, told = _opened(file), time.monotonic() + wait_s, not waiting
    try:
        missing = _refused(handle, file)
        while missing is not None and missing.errno not in MISSING:
            if time.monotonic() >= give_up:
                raise InputError(f"Another process {busy}{_named(os.pread(handle, 300, 0))}: wait for it, or stop it "
                                 "first.")
            if not told:
                _log.info(waiting)
                told = True
            time.sleep(EVERY_S)
            missing = _refused(handle, file)
        if missing is not None:
            with _stand_in(file, busy, waiting, give_up, missing):
                yield
            return
        if os.fstat(handle).st_nlink == 1:  # else it is somebody's other file too
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def _refused(handle: int, file: Path) -> OSError | None:
    """Take the lock; why not, where another process has it or the file system has none. Raises `InputError` else."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (*BUSY, *MISSING):
            return error
        raise InputError(f"{file} cannot be locked: {error.strerror}. Use a directory on another file "
                         "system.") from error
    return None


def kind(directory: Path) -> str:
    """How locks are held in a directory, for people: tried there, and nothing stays. Raises as `locked` does."""
    file = directory / f".meal-gpu-lock-{os.getpid()}"
    handle = _opened(file)
    try:
        missing = _refused(handle, file)
        return f"by files that stand in for locks ({missing.strerror})" if missing else "by the file system"
    finally:
        os.close(handle)
        file.unlink(missing_ok=True)


def _opened(file: Path) -> int:
    """The file, open for reading and writing, with nothing in it changed; no link is followed."""
    try:
        return own_handle(file, os.O_RDWR | os.O_CREAT)
    except NoFileError as error:
        mode = error.mode
    what = "a link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "no ordinary file"
    raise InputError(f"{file} is {what}, and a lock is to be there: move it away, or use another directory.")


def _named(content: bytes) -> str:
    """`` (process 12 on there)``, or nothing; what others have written is not repeated whatever it is."""
    text = content.decode("ascii", "replace").strip()
    return f" ({text})" if text.startswith("process ") and text.isprintable() else ""


# --- where the file system has no locks -------------------------------------------------------------------------------


@contextmanager
def _stand_in(file: Path, busy: str, waiting: str, give_up: float, why: OSError) -> Iterator[None]:
    held, told, me = file.with_name(file.name + STAND_IN), not waiting, _me()
    patience = max(give_up, time.monotonic() + WRITTEN_S)
    while not _made(held, me):
        holder = _read(held)
        if holder is None and not os.path.lexists(held):
            continue
        if holder is not None and _is_gone(holder):
            _take_over(held, holder)
            continue
        if time.monotonic() >= (patience if holder is None else give_up):
            raise InputError(_in_the_way(held, holder, busy))
        if not told and holder is not None:
            _log.info("%s %s", waiting, _in_the_way(held, holder, busy))
            told = True
        time.sleep(EVERY_S)
    _log.info("The file system of %s has no locks (%s): the file %s stands in for one.", file.parent, why.strerror,
              held.name)
    try:
        yield
    finally:
        if _read(held) == me:  # somebody may have deleted it for good reasons
            with contextlib.suppress(OSError):
                held.unlink()


def _me() -> dict[str, Any]:
    """Who I am, so that nobody else can be: a process id is given again, and other containers count anew."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": _started(os.getpid()), "system": _system()}


def _system() -> str:
    """Names the start of this machine and the container in it, within which a process id means one process."""
    parts = []
    with contextlib.suppress(OSError):
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process began, in the system's own measure; empty where it is gone, or nothing tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode("ascii")
    except (OSError, IndexError):
        return ""


def _made(held: Path, me: dict[str, Any]) -> bool:
    """Make the file; False where there is one."""
    try:
        handle = os.open(held, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, json.dumps(me).encode())
        os.fsync(handle)
    except OSError:
        held.unlink()
        raise
    finally:
        os.close(handle)
    return True


def _read(held: Path) -> dict[str, Any] | None:
    """Who holds it; None where the file says nothing, or is gone."""
    try:
        handle = os.open(held, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = json.loads(os.read(handle, 4096))
    except (OSError, ValueError):
        return None
    finally:
        os.close(handle)
    known = isinstance(found, dict) and isinstance(found.get("pid"), int) and isinstance(found.get("host"), str)
    return found if known else None


def _elsewhere(holder: dict[str, Any]) -> bool:
    return (holder["host"], holder.get("system")) != (socket.gethostname(), _system())


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether it was left by a process of this machine that is gone; of another machine's nobody here can know."""
    if _elsewhere(holder):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's
        pass
    return _started(holder["pid"]) != holder.get("since")  # its number was given again


def _take_over(held: Path, holder: dict[str, Any]) -> None:
    """Remove what a process left, one process at a time: the next may have made its own by then."""
    guard = held.with_name(held.name + ".taken")
    try:
        os.mkdir(guard)
    except FileExistsError:
        with contextlib.suppress(OSError):
            if time.time() - guard.stat().st_mtime > 10 * WRITTEN_S:  # its maker was killed between two calls
                os.rmdir(guard)
        time.sleep(EVERY_S)
        return
    try:
        if _read(held) == holder:
            held.unlink()
            _log.info("%s was left by process %d, which is gone: taken over.", held, holder["pid"])
    finally:
        os.rmdir(guard)


def _in_the_way(held: Path, holder: dict[str, Any] | None, busy: str) -> str:
    if holder is None:
        return (f"{held} says that another process {busy}, and not which. If none does, delete that file and start "
                "again.")
    who = f"process {holder['pid']} on {holder['host']!a}"
    if not _elsewhere(holder):
        return f"Another process {busy} ({who}): wait for it, or stop it first."
    return (f"Another process {busy} ({who}), or was killed there: the file system has no locks, and this machine "
            f"cannot see that one. Wait for it; if it runs no more, delete {held} and start again.")
