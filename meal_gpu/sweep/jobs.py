"""Runs as tasks of Dask's workers, one at a time in each.

The lock of a run's directory (`launch.run_or_resume`) keeps two processes from writing into one run. Dask cannot: it
may believe a worker dead that still works.
"""

import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, first_line
from ..files import write_atomic
from ..sharding import cluster

if TYPE_CHECKING:
    from ..sharding.cluster import Client

KEPT = "All finished rounds are kept: run the same command again to go on."

Event = dict[str, Any]
"""What a run tells: ``point``, ``worker``, and ``round`` with a finished one's numbers, or ``stage, done, total``."""


@dataclass(frozen=True)
class Job:
    """One run, as it is sent to a worker."""

    name: str
    directory: str
    config: str
    """YAML."""


def run_jobs(client: "Client", jobs: Sequence[Job],
             notice: Callable[[Event], None]) -> Iterator[tuple[str, str | None]]:
    """Run all jobs, one per worker at a time; yields (name, None or why it failed) as they end.

    ``notice`` is called, in another thread, with what the runs tell as they go. Raises `InputError` when the scheduler
    is lost, or has no workers for `cluster.WAIT_S`.

    The futures are looked at again and again, and the scheduler is asked whether it is there: Dask's own waiting
    (``as_completed``) does not end where a scheduler that lives has lost its last worker.
    """
    distributed = cluster.dask("distributed", "dask")
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

    waiting: dict[Any, Job] = {}
    asked = manned = time.monotonic()
    try:
        client.subscribe_topic(topic, heard)
        waiting = {future: job for job, future in ((job, submit(job)) for job in jobs)}
        while waiting:
            ended = [future for future in waiting if future.status not in ("pending", "lost")]
            if not ended:
                time.sleep(cluster.TICK_S)
                if time.monotonic() - asked > cluster.CONNECT_S:
                    asked = time.monotonic()
                    manned = asked if cluster.workers_of(client, KEPT) else manned
                    if asked - manned > cluster.WAIT_S:
                        raise InputError(f"The scheduler {client.scheduler.address} has had no workers for "
                                         f"{cluster.WAIT_S:.0f} s. Start some with: dask worker ADDRESS --nthreads 1 "
                                         f"--nworkers N. {KEPT}")
                continue
            manned = time.monotonic()
            for future in ended:
                job = waiting.pop(future)
                if future.cancelled():
                    raise cluster.lost(client, KEPT)
                error = future.exception() if future.status == "error" else None
                if isinstance(error, distributed.KilledWorker):
                    # Dask counts every task that was assigned to a dead worker, even those that had not begun there.
                    if starts[job.name] < cluster.LIVES:
                        waiting[submit(job)] = job
                    else:
                        yield job.name, (f"its worker died {starts[job.name]} times without finishing a round; the "
                                         "system may have killed it for its memory: use fewer workers")
                elif error is not None:  # it could not even be loaded there
                    yield job.name, f"{type(error).__name__}: {error}"
                else:
                    yield job.name, future.result()
    except cluster.SchedulerLostError:
        waiting = {}  # nobody can be told
        raise
    except InputError:
        raise
    except Exception as error:  # whatever a client raises in the middle of losing its scheduler
        unfinished, waiting = waiting, {}
        cluster.workers_of(client, KEPT)
        waiting = unfinished
        raise InputError(f"Dask's scheduler cannot be reached: {first_line(error)}. {KEPT}") from error
    finally:
        if waiting and client.status == "running":
            with suppress(Exception):
                client.cancel(list(waiting), force=True)


def run_job(topic: str, job: Job) -> str | None:
    """The task: a run from wherever it is to its end, in a worker. Returns None, or why it failed."""
    from ..config import Config
    from ..launch import run_or_resume
    from ..records import Record

    worker = cluster.dask("distributed", "dask").get_worker()
    who = {"point": job.name, "worker": worker.address}
    if worker.state.nthreads != 1:
        return cluster.too_wide(worker.address, worker.state.nthreads)

    def tell(**what: Any) -> None:
        worker.log_event(topic, {**who, **what})

    def observe(seed: int, record: Record) -> None:
        tell(seed=seed, round=record["round"], miou=record["miou"], n_labelled=record["n_labelled"])

    tell(started=True)
    directory = Path(job.directory)
    try:
        import yaml

        run_or_resume(Config.load(yaml.safe_load(job.config)), directory, cluster.reporting(worker, topic, who),
                      observe, cluster.WAIT_S)
    except InputError as error:
        return str(error)
    except cluster.Unwanted:
        raise
    except Exception as error:
        file = directory / "error.txt"  # it may have failed before there was a directory
        write_atomic(file, traceback.format_exc().encode("utf-8", "backslashreplace"))
        return f"{type(error).__name__}: {error} (see {file})"
    return None
