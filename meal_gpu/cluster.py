"""Dask: where workers come from, a run as one of their tasks, and workers that hold parts. The one file with Dask.

Dask restarts a worker that died (its nanny does) or that was silent for ``distributed.scheduler.worker-ttl``, and gives
its tasks to others. What is added here is only what it cannot know: that a run is to have its process to itself, that
it goes on from its finished rounds, and that it stops when nobody waits for it any more. That no two processes write
into one run is up to the lock of the run's directory (`launch.run_or_resume`), not to what Dask believes of a worker.
"""

import logging
import os
import queue
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, first_line
from .timing import Progress

if TYPE_CHECKING:
    from distributed import Client

COMMON: dict[str, Any] = {
    "dashboard_address": "127.0.0.1:8787",  # another port where this one is taken
    "memory_limit": 0,  # none: Dask would kill a worker for the pages of a store that it has mapped
    "silence_logs": logging.CRITICAL,  # in the workers
    "preload": "meal_gpu.cluster",  # `dask_setup`
}
WAIT_S = 120.0
"""A task waits so long for a directory whose last process is being stopped."""
LIVES = 4
"""A run is given up when its workers die so often without a finished round between."""
CONNECT_S = 10.0
TICK_S = 0.5
"""Between two reports of progress by one run."""
KEPT = "All finished rounds are kept: go on with meal-gpu run --resume."

Event = dict[str, Any]
"""What a run tells: ``point``, ``worker``, and ``round`` with a finished one's numbers, or ``stage, done, total``."""


@dataclass(frozen=True)
class Job:
    """One run, as it is sent to a worker."""

    name: str
    directory: str
    config: str
    """YAML."""


class Unwanted(Exception):  # noqa: N818
    """Nobody waits for this run any more; it stops, and its finished rounds are kept."""


@contextmanager
def local(n_workers: int, threads: int) -> "Iterator[Client]":
    """Workers on this machine, each a process that runs one point at a time with so many threads."""
    distributed = _dask("distributed", "dask")
    with (_quiet(), _spawning(threads), distributed.LocalCluster(n_workers=n_workers, threads_per_worker=1,
                                                                 processes=True, **COMMON) as cluster,
          distributed.Client(cluster) as client):
        yield client


@contextmanager
def cuda(threads: int) -> "Iterator[Client]":
    """One worker per GPU of this machine. Raises `InputError` where there is none."""
    import torch

    if not torch.cuda.is_available():
        raise InputError("--cuda: no CUDA device is usable here (see meal-gpu info). Leave --cuda out to use the CPU.")
    distributed, dask_cuda = _dask("distributed", "dask"), _dask("dask_cuda", "dask-cuda")
    with (_quiet(), _spawning(threads), dask_cuda.LocalCUDACluster(threads_per_worker=1, **COMMON) as cluster,
          distributed.Client(cluster) as client):
        yield client


@contextmanager
def connected(address: str) -> "Iterator[Client]":
    """The workers of a scheduler that runs already; they must see the same directories as this machine."""
    distributed = _dask("distributed", "dask")
    try:
        client = distributed.Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise InputError(f"No Dask scheduler answers at {address} ({' '.join(str(error).split())}). Start one with: "
                         "dask scheduler, and workers with: dask worker ADDRESS --nthreads 1 --nworkers N") from None
    with _quiet(), client:
        for worker, facts in client.scheduler_info(n_workers=-1)["workers"].items():
            if facts["nthreads"] != 1:
                raise InputError(_too_wide(worker, facts["nthreads"]))
        yield client


def run_jobs(client: "Client", jobs: Sequence[Job],
             notice: Callable[[Event], None]) -> Iterator[tuple[str, str | None]]:
    """Run all jobs, one per worker at a time; yields (name, None or why it failed) as they end.

    ``notice`` is called, in another thread, with what the runs tell as they go. Raises `InputError` when the scheduler
    is lost.
    """
    distributed = _dask("distributed", "dask")
    topic = f"meal-gpu-{uuid.uuid4().hex}"
    starts = dict.fromkeys((job.name for job in jobs), 0)

    def heard(event: tuple[float, Event]) -> None:
        told = event[1]
        if told.get("started"):
            starts[told["point"]] += 1
        elif "round" in told:
            starts[told["point"]] = 0
        notice(told)

    def submit(job: Job) -> Any:
        # A key of its own for every attempt: an earlier client's task of that name may still be there.
        return client.submit(run_job, topic, job, key=f"{job.name}-{uuid.uuid4().hex}", pure=False)

    client.subscribe_topic(topic, heard)
    waiting = {future: job for job, future in ((job, submit(job)) for job in jobs)}
    ended = distributed.as_completed(list(waiting))
    try:
        for future in ended:
            job = waiting.pop(future)
            if future.cancelled():
                raise InputError(f"The connection to the scheduler {client.scheduler.address} is lost. All finished "
                                 "rounds are kept: run the same command again to go on.")
            error = future.exception() if future.status == "error" else None
            if isinstance(error, distributed.KilledWorker):
                # Dask counts every task that was assigned to a dead worker, even those that had not begun there.
                if starts[job.name] < LIVES:
                    again = submit(job)
                    waiting[again] = job
                    ended.add(again)
                else:
                    yield job.name, (f"its worker died {starts[job.name]} times without finishing a round; the system "
                                     "may have killed it for its memory: use fewer workers")
            elif error is not None:  # it could not even be loaded there
                yield job.name, f"{type(error).__name__}: {error}"
            else:
                yield job.name, future.result()
    finally:
        if client.status == "running":
            client.cancel(list(waiting), force=True)


def run_job(topic: str, job: Job) -> str | None:
    """The task: a run from wherever it is to its end, in a worker. Returns None, or why it failed."""
    from distributed import get_worker

    from .config import Config
    from .launch import run_or_resume
    from .records import Record

    worker = get_worker()
    key, name = worker.get_current_task(), job.name
    if worker.state.nthreads != 1:
        return _too_wide(worker.address, worker.state.nthreads)

    def tell(**what: Any) -> None:
        worker.log_event(topic, {"point": name, "worker": worker.address, **what})

    last = ("", 0.0)

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        _check_wanted(worker, key)
        if stage != last[0] or time.monotonic() - last[1] > TICK_S:
            last = stage, time.monotonic()
            tell(stage=stage, done=done, total=total)

    def observe(seed: int, record: Record) -> None:
        tell(seed=seed, round=record["round"], miou=record["miou"], n_labelled=record["n_labelled"])

    tell(started=True)
    directory = Path(job.directory)
    try:
        import yaml

        run_or_resume(Config.load(yaml.safe_load(job.config)), directory, progress, observe, WAIT_S)
    except InputError as error:
        return str(error)
    except Unwanted:
        raise
    except Exception as error:
        file = directory / "error.txt"
        file.write_text(traceback.format_exc())
        return f"{type(error).__name__}: {error} (see {file})"
    return None


def _check_wanted(worker: Any, key: Any) -> None:
    task = worker.state.tasks.get(key)
    if task is None or task.state != "executing" or worker.status.name not in ("running", "paused"):
        raise Unwanted(key)  # cancelled, or the scheduler is lost: Dask does not interrupt a thread


def dask_setup(worker: Any) -> None:
    """Ctrl-C in a terminal reaches workers too: leave it to the process that started them, which stops them."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _too_wide(worker: str, threads: int) -> str:
    return (f"The worker {worker} runs {threads} tasks at once, and a run needs its process to itself. Start workers "
            "with: dask worker ADDRESS --nthreads 1 --nworkers N")


def _dask(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != module:
            raise
        raise InputError(f"{module} is not installed, and this runs on it: pip install 'meal-gpu[{extra}]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's log tells of lost workers and of every connection; what matters of it is on the board."""
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
def _spawning(threads: int) -> Iterator[None]:
    """Thread counts for the workers' processes, there before anything is imported in them.

    Dask sets these in this process when it starts a worker, and its own default is one thread for each.
    """
    import dask.config

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = dict(os.environ)
    try:
        with dask.config.set({"distributed.nanny.pre-spawn-environ": dict.fromkeys(names, threads)}):
            yield
    finally:
        for name in {*names, "PYTHONHASHSEED"}:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


# --- workers that keep what they are asked about ----------------------------------------------------------------------


class Broadcast:
    """Bytes that every worker has; sent again where the last copy was lost with its worker."""

    def __init__(self, client: "Client", data: bytes) -> None:
        self.client, self.data, self.held = client, data, None

    def future(self) -> Any:
        held: Any = self.held
        for left in reversed(range(LIVES)):
            if held is not None and held.status == "finished":
                break
            try:
                [held] = self.client.scatter([self.data], broadcast=True, hash=False)
                self.held = held
            except (OSError, TimeoutError):  # a worker has died, and the scheduler may not know yet
                if not left or self.client.status != "running":
                    raise
                time.sleep(TICK_S)
        return held


class Workers:
    """Workers that hold parts of something, and are asked about these; see `ask`.

    ``share_memory``: they live on this machine and share what it has.
    """

    def __init__(self, place: AbstractContextManager["Client"], share_memory: bool = False) -> None:
        self.share_memory, self._exit = share_memory, ExitStack()
        self.client = self._exit.enter_context(place)
        self._topic, self._heard = f"meal-gpu-{uuid.uuid4().hex}", dict[Any, tuple[str, int]]()
        self._homes: dict[Any, str] = {}
        try:
            self.client.subscribe_topic(self._topic, self._listen)
            self._await_workers(CONNECT_S)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._addresses())

    def close(self) -> None:
        self._exit.close()

    def broadcast(self, data: bytes) -> Broadcast:
        return Broadcast(self.client, data)

    def everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Call a function in every worker that can be reached: what they answer, by address. Errors are left out."""
        with suppress(Exception):
            answers: dict[str, Any] = self.client.run(function, *args, on_error="ignore")
            return answers
        return {}

    def ask(self, function: Callable[..., Any], asked: Sequence[tuple[Any, tuple[Any, ...]]], shared: Broadcast,
            progress: Progress, stage: str, total: int) -> list[Any]:
        """Call ``function(home, mine, part, *args, shared, progress)`` for every (part, args), where the part lives.

        A part lives with one worker as long as that is there. When the worker is lost, the question goes to another,
        which finds out by itself that it does not hold the part. ``home`` tells it whether the part is to stay with it,
        ``mine`` are all parts that are to.

        Returns the answers in the order asked. Raises `InputError` when the scheduler is lost, no worker is left, or a
        part's workers die `LIVES` times; and what the function raises.
        """
        distributed = _dask("distributed", "dask")
        self._await_workers(WAIT_S)
        self._settle([part for part, _ in asked])
        self._heard.clear()
        answers: list[Any] = [None] * len(asked)
        lives = [LIVES] * len(asked)
        pending: dict[Any, int] = {}
        mine = self._families()
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def submit(i: int) -> None:
            part, args = asked[i]
            home = self._homes[part]
            future = self.client.submit(
                _answer, self._topic, function, home, mine[home], part, args, shared.future(), workers=[home],
                allow_other_workers=True, key=f"{function.__name__}-{uuid.uuid4().hex}", pure=False)
            pending[future] = i
            future.add_done_callback(ended.put)

        try:
            for i in range(len(asked)):
                submit(i)
            seen = time.monotonic()
            while pending:
                try:
                    future = ended.get(timeout=TICK_S)
                except queue.Empty:
                    told = [done for at, done in self._heard.values() if at == stage]
                    if told:
                        progress(stage, min(sum(told), total), total)
                    if time.monotonic() - seen > CONNECT_S:
                        seen = time.monotonic()
                        self._await_workers(WAIT_S)
                    continue
                i = pending.pop(future)
                error = future.exception() if future.status == "error" else None
                if future.status == "finished":
                    answers[i] = future.result()
                elif error is not None and not isinstance(error, (distributed.KilledWorker, Unwanted)):
                    raise error
                else:  # its worker is gone, and perhaps the last copy of what was shared with it
                    self._check_connected()
                    lives[i] -= 1
                    if not lives[i]:
                        raise InputError(f"The workers that were given part {asked[i][0]} of the pool died {LIVES} "
                                         "times; the system may have killed them for their memory: lower "
                                         f"data.budget_gb, or use fewer workers on a machine. {KEPT}")
                    self._await_workers(WAIT_S)
                    self._settle([part for part, _ in asked])
                    mine = self._families()
                    submit(i)
        except (OSError, TimeoutError) as error:  # while something was sent
            self._check_connected()
            raise InputError(f"Dask's workers cannot be reached: {first_line(error)}. {KEPT}") from error
        finally:
            if self.client.status == "running":
                self.client.cancel(list(pending), force=True)
        progress(stage, total, total)
        return answers

    def _listen(self, event: tuple[float, Event]) -> None:
        told = event[1]
        self._heard[told["part"]] = told["stage"], told["done"]

    def _addresses(self) -> list[str]:
        self._check_connected()
        return sorted(self.client.scheduler_info(n_workers=-1)["workers"])

    def _await_workers(self, seconds: float) -> None:
        """Raise `InputError` where there is no worker, and none comes for so long."""
        give_up = time.monotonic() + seconds
        while not self._addresses():
            if time.monotonic() > give_up:
                raise InputError(f"The scheduler {self.client.scheduler.address} has no workers. Start some with: dask "
                                 f"worker ADDRESS --nthreads 1 --nworkers N. {KEPT}")
            time.sleep(TICK_S)

    def _check_connected(self) -> None:
        if self.client.status != "running":
            raise InputError(f"The connection to the scheduler {self.client.scheduler.address} is lost. {KEPT}")

    def _families(self) -> dict[str, frozenset[Any]]:
        """By home, the parts that live there."""
        found: dict[str, set[Any]] = {}
        for part, home in self._homes.items():
            found.setdefault(home, set()).add(part)
        return {home: frozenset(parts) for home, parts in found.items()}

    def _settle(self, parts: Sequence[Any]) -> None:
        """Give every part a home: the one that it has, while that is there and holds no more than others do."""
        addresses = self._addresses()
        for part in parts:
            self._homes.setdefault(part, "")
        most = -(-len(self._homes) // max(len(addresses), 1))
        load = dict.fromkeys(addresses, 0)
        homeless = []
        for part, home in self._homes.items():
            if load.get(home, most) < most:
                load[home] += 1
            else:
                homeless.append(part)
        for part in homeless if addresses else ():
            emptiest = min(addresses, key=lambda address: load[address])
            self._homes[part], load[emptiest] = emptiest, load[emptiest] + 1


def _answer(topic: str, function: Callable[..., Any], home: str, mine: frozenset[Any], part: Any,
            args: tuple[Any, ...], shared: bytes) -> Any:
    """The task of `Workers.ask`, in a worker."""
    from distributed import get_worker

    worker = get_worker()
    key, last = worker.get_current_task(), 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        _check_wanted(worker, key)
        if time.monotonic() - last > TICK_S:
            last = time.monotonic()
            worker.log_event(topic, {"part": part, "stage": stage, "done": done})

    return function(worker.address == home, mine, part, *args, shared, progress)
