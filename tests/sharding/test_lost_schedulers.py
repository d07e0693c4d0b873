"""Whatever becomes of a scheduler, those who wait for it are told. Fifty of each kind: make test-lost-schedulers.

Scheduler and worker are processes of their own, forked from one that has imported Dask.
"""

import asyncio
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from meal_gpu.errors import InputError
from meal_gpu.sharding import cluster
from meal_gpu.sharding.workers import Workers
from meal_gpu.sweep import jobs
from meal_gpu.timing import no_progress

distributed = pytest.importorskip("distributed")
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["distributed", "meal_gpu.sharding.workers", "meal_gpu.sweep.jobs"])
ENDS = ("killed", "stopped in an orderly way", "left by its worker", "killed with its worker")


def serve(pipe) -> None:
    async def run() -> None:
        async with distributed.Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            pipe.send(scheduler.address)
            while not pipe.poll():
                await asyncio.sleep(0.05)

    asyncio.run(run())


def work(address: str, pipe) -> None:
    async def run() -> None:
        async with distributed.Worker(address, nthreads=1, death_timeout=60) as worker:
            pipe.send("ready")
            await worker.finished()

    asyncio.run(run())


class Site:
    """A scheduler and a worker."""

    def __init__(self) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.scheduler = FORK.Process(target=serve, args=(theirs,), daemon=True)
        self.scheduler.start()
        theirs.close()  # so that a dead scheduler is noticed
        self.address = self.pipe.recv()
        ready, theirs = FORK.Pipe()
        self.worker = FORK.Process(target=work, args=(self.address, theirs), daemon=True)
        self.worker.start()
        ready.recv()

    def end(self, how: str) -> None:
        if how == "stopped in an orderly way":
            self.pipe.send("stop")
            return
        for process in {"killed": [self.scheduler], "left by its worker": [self.worker]}.get(
                how, [self.worker, self.scheduler]):
            os.kill(process.pid, signal.SIGKILL)

    def close(self) -> None:
        for process in (self.worker, self.scheduler):
            process.kill()
            process.join()


def long_job(topic: str, job: jobs.Job) -> None:
    """In place of `jobs.run_job`: a run that goes on, and tells of it."""
    worker = distributed.get_worker()
    progress = cluster.reporting(worker, topic, {"point": job.name, "worker": worker.address})
    worker.log_event(topic, {"point": job.name, "worker": worker.address, "started": True})
    for i in range(3000):
        progress(f"stage {i % 7}", i, 3000)
        time.sleep(0.02)


def long_answer(home, mine, part, shared, progress) -> None:
    """What a worker is asked, in place of scoring its part."""
    for i in range(3000):
        progress("score", i, 3000)
        time.sleep(0.02)


def lose(how: str, sharded: bool, patience: pytest.MonkeyPatch, at: float) -> None:
    """Lose a scheduler ``at`` seconds after the work has begun, before that where it is negative."""
    patience.setattr(cluster, "CONNECT_S", 10.0)
    patience.setattr(cluster, "WAIT_S", 3.0)
    patience.setattr(jobs, "run_job", long_job)
    site = Site()
    try:
        said = "no workers" if how == "left by its worker" else "is lost. All finished rounds are kept"
        if sharded:
            begun: list[float] = []

            def progress(stage: str, done: int, total: int) -> None:
                begun[:] = begun or [time.monotonic()]
                if time.monotonic() - begun[0] > at:
                    site.end(how)
                    begun[:] = [float("inf")]

            workers = Workers(cluster.connected(site.address))
            patience.setattr(cluster, "CONNECT_S", 1.0)
            try:
                if at < 0:
                    site.end(how)
                with pytest.raises(InputError, match=f"{said}|cannot be reached"):
                    workers.ask(long_answer, [(0, ()), (1, ())], workers.broadcast(b"weights"),
                                no_progress if at < 0 else progress, "score", 6000)
            finally:
                workers.close()
        else:
            heard: list[float] = []

            def notice(event: dict) -> None:
                heard[:] = heard or [time.monotonic()]
                if at >= 0 and time.monotonic() - heard[0] >= at:
                    site.end(how)
                    heard[:] = [float("inf")]

            with cluster.connected(site.address) as client:
                patience.setattr(cluster, "CONNECT_S", 1.0)
                if at < 0:
                    site.end(how)
                with pytest.raises(InputError, match=f"{said}|cannot be reached"):
                    list(jobs.run_jobs(client, [jobs.Job("one", "", ""), jobs.Job("two", "", "")], notice))
    finally:
        site.close()


@pytest.mark.parametrize("sharded", [False, True], ids=["sweep", "sharded"])
@pytest.mark.parametrize("how", ENDS)
def test_whoever_waits_for_a_lost_scheduler_is_told(how, sharded, monkeypatch):
    lose(how, sharded, monkeypatch, at=0.0)


@pytest.fixture
def busy() -> Iterator[None]:
    """Every core has something else to do."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for process in spinning:
        process.kill()
        process.wait()


@pytest.mark.lost_schedulers
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("sharded", [False, True], ids=["sweep", "sharded"])
def test_fifty_in_a_row_on_busy_cores(sharded, monkeypatch, busy, capsys):
    """At any moment: before anything is sent, with the first sign of life, in the middle."""
    draw = random.Random(0)
    for i in range(50):
        lose(ENDS[i % len(ENDS)], sharded, monkeypatch, at=draw.choice([-1.0, 0.0, draw.random()]))
        if i % 10 == 9:
            with capsys.disabled():
                print(f"\n{i + 1} lost schedulers in a row ({'sharded' if sharded else 'sweep'}), each told of", end="")
