"""Dask: where workers come from. The one file that imports it; `jobs` and `workers` give them something to do.

Dask restarts a worker that died (its nanny does) or that was silent for ``distributed.scheduler.worker-ttl``, and gives
its tasks to others. What is added is only what it cannot know: that a run is to have its process to itself, that it
goes on from its finished rounds, that a part of a pool is to stay where it is held, and that work stops when nobody
waits for it any more.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..errors import InputError, first_line
from ..timing import Progress
from . import forking
from .scripts import check_guarded

if TYPE_CHECKING:
    from distributed import Client

COMMON: dict[str, Any] = {
    "dashboard_address": "127.0.0.1:8787",  # another port where this one is taken
    "memory_limit": 0,  # none: Dask would kill a worker for the pages of a store that it has mapped
    "silence_logs": logging.CRITICAL,  # in the workers
    "preload": ["meal_gpu.sharding.cluster"],  # `dask_setup`; a list, to which dask_cuda adds its own
}
WAIT_S = 120.0
"""So long a task waits for a directory whose last process is being stopped, and a run for workers to come back."""
LIVES = 4
"""A run is given up when its workers die so often without anything finished between."""
CONNECT_S = 10.0
SILENT_S = 60.0
"""A scheduler that does not answer for so long is lost."""
TICK_S = 0.5
"""Between two reports of progress by one task."""


class SchedulerLostError(InputError):
    """The scheduler is gone, or does not answer."""


class Unwanted(Exception):  # noqa: N818
    """Nobody waits for this task any more; it stops, and what is finished is kept."""


@contextmanager
def local(n_workers: int, threads: int) -> "Iterator[Client]":
    """Workers on this machine, each a process that runs one point at a time with so many threads."""
    check_guarded()
    distributed = dask("distributed", "dask")
    with (_quiet(), _starting(threads, forking.method(threads)), _begun(lambda: distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, security=_own_certificates(),
            **COMMON)) as cluster,
          distributed.Client(cluster) as client):
        yield client


@contextmanager
def cuda(threads: int) -> "Iterator[Client]":
    """One worker per GPU of this machine. Raises `InputError` where there is none."""
    import torch

    if not torch.cuda.is_available():
        raise InputError("--cuda: no CUDA device is usable here (see meal-gpu info). Leave --cuda out to use the CPU.")
    check_guarded()
    distributed, dask_cuda = dask("distributed", "dask"), dask("dask_cuda", "dask-cuda")
    options = {"threads_per_worker": 1, "protocol": "tls", "security": _own_certificates(), **COMMON}
    with (_quiet(), _starting(threads, "spawn"), _begun(lambda: dask_cuda.LocalCUDACluster(**options)) as cluster,
          distributed.Client(cluster) as client):
        yield client


def _begun(make: Callable[[], Any]) -> Any:
    """A cluster. Raises `InputError` where its processes end as soon as they begin, having said why."""
    try:
        return make()
    except RuntimeError as error:
        if "failed to start" not in str(error):
            raise
        raise InputError(f"Worker processes cannot be started ({first_line(error.__cause__ or error)}): what stands "
                         "above may say why.") from None


def _own_certificates() -> Any:
    """Certificates that are made for one cluster and held in memory: whoever has them may run code in its processes.

    Without them every user of this machine could, since the scheduler listens on the loopback.
    """
    distributed = dask("distributed", "dask")
    try:
        return distributed.Security.temporary()
    except ImportError:
        raise InputError("cryptography is not installed, and workers on this machine are reached through TLS alone: "
                         "pip install 'meal-gpu[dask]'") from None


@contextmanager
def connected(address: str) -> "Iterator[Client]":
    """The workers of a scheduler that runs already; they must see the same directories as this machine.

    A ``tls://`` address needs the certificates that Dask's own settings name (``DASK_DISTRIBUTED__COMM__TLS__…``).
    """
    distributed = dask("distributed", "dask")
    if address.startswith("tls://"):
        import dask.config as settings

        missing = [key for key in ("ca-file", "client.key", "client.cert")
                   if not settings.get(f"distributed.comm.tls.{key}", None)]
        if missing:
            names = (f"DASK_DISTRIBUTED__COMM__TLS__{key.upper().replace('-', '_').replace('.', '__')}"
                     for key in missing)
            raise InputError(f"{address} is reached with certificates. Set {', '.join(names)} to the files that the "
                             "scheduler's owner has given you (docs/security.md).")
    try:
        client = distributed.Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise InputError(f"No Dask scheduler answers at {address} ({' '.join(str(error).split())}). Start one with: "
                         "dask scheduler, and workers with: dask worker ADDRESS --nthreads 1 --nworkers N") from None
    with _quiet():
        try:
            for worker, facts in client.scheduler_info(n_workers=-1)["workers"].items():
                if facts["nthreads"] != 1:
                    raise InputError(too_wide(worker, facts["nthreads"]))
            yield client
        finally:
            with suppress(Exception):  # the connection may be gone, and what is to be told is told by then
                client.close()


def at(place: int | str, most: int | None = None) -> "AbstractContextManager[Client]":
    """Workers at a place: so many processes on this machine, ``cuda``, or a scheduler's address.

    Processes on this machine share its threads: each gets what it would have if all that ``place`` says were started,
    even where only ``most`` are. The number of threads decides how sums are split, so it must not depend on ``most``.
    """
    import torch

    threads = torch.get_num_threads()  # what one process would use here: all cores, or OMP_NUM_THREADS
    if isinstance(place, int):
        return local(place if most is None else min(place, most), max(threads // place, 1))
    if place == "cuda":
        return cuda(max(threads // max(torch.cuda.device_count(), 1), 1))
    return connected(place)


def workers_of(client: "Client", kept: str) -> list[str]:
    """Addresses of the workers. Raises `SchedulerLostError`, saying what is kept, when the scheduler is lost.

    It is asked, whatever the client believes of the connection.
    """
    began = time.monotonic()
    while client.status == "running":
        try:
            found = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=SILENT_S)
            return sorted(found["workers"])
        except OSError:  # a connection that is made again, or silence
            if time.monotonic() - began > CONNECT_S:
                break
            time.sleep(TICK_S)
        except Exception:
            if client.status == "running":  # else it is being closed, and raises what it happens to meet
                raise
    raise lost(client, kept)


def check_connected(client: "Client", kept: str) -> None:
    """Raise `SchedulerLostError`, saying what is kept, where the client knows that the scheduler is lost."""
    if client.status != "running":
        raise lost(client, kept)


def lost(client: "Client", kept: str) -> SchedulerLostError:
    """What to raise for a lost scheduler."""
    address = getattr(client.scheduler, "address", "")  # there is none in a client that has given up
    return SchedulerLostError(f"The connection to the scheduler {address} is lost. {kept}".replace("  ", " "))


def reporting(worker: Any, topic: str, who: dict[str, Any]) -> Progress:
    """A ``progress`` for a task on a worker: tells ``topic`` who has come how far, every `TICK_S` at most.

    It raises `Unwanted` when the task is cancelled or the scheduler is lost, since Dask does not interrupt a thread.
    """
    key, last = worker.get_current_task(), ("", 0.0)

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        task = worker.state.tasks.get(key)
        if task is None or task.state != "executing" or worker.status.name not in ("running", "paused"):
            raise Unwanted(key)
        if stage != last[0] or time.monotonic() - last[1] > TICK_S:
            last = stage, time.monotonic()
            worker.log_event(topic, {**who, "stage": stage, "done": done, "total": total})

    return progress


def dask_setup(worker: Any) -> None:
    """Ctrl-C in a terminal reaches workers too: leave it to the process that started them, which stops them."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def too_wide(worker: str, threads: int) -> str:
    """What is wrong with a worker of more than one thread."""
    return (f"The worker {worker} runs {threads} tasks at once, and a run needs its process to itself. Start workers "
            "with: dask worker ADDRESS --nthreads 1 --nworkers N")


def dask(module: str, extra: str) -> Any:
    """``distributed`` or ``dask_cuda``, imported now. Raises `InputError` where it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != module:
            raise
        raise InputError(f"{module} is not installed, and this runs on it: pip install 'meal-gpu[{extra}]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's log tells of lost workers and of every connection; what matters of it is in the sweep's table."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)  # it takes another
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _starting(threads: int, method: str) -> Iterator[None]:
    """Thread counts for the workers' processes, there before anything is imported in them.

    Dask sets these in this process when it starts a worker, and its own default is one thread for each.
    """
    import dask.config

    with (forking.environment_kept(*forking.THREADS, "PYTHONHASHSEED"),
          dask.config.set({"distributed.nanny.pre-spawn-environ": dict.fromkeys(forking.THREADS, threads),
                           "distributed.worker.multiprocessing-method": method})):
        yield
