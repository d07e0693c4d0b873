"""Many runs: every point of a sweep in its own directory, on the workers of Dask, and one report of all.

The directory holds ``sweep.yaml`` (the points, every config in full), one run directory per point, and
``report.html``. What is finished stays as it is; everything else goes on from its last finished round.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..config import Config, DataConfig
from ..data.datasets import Dataset, open_dataset
from ..engine.feasible import check_feasible
from ..errors import InputError
from ..files import write_atomic
from ..launch import check_place, check_same_run, finished
from ..locks import locked
from ..machine.backend import resolve
from ..machine.card import processes
from ..paths import expand
from ..report import load_sweep, write_report
from ..sharding import cluster
from ..sharding.shards import check_local
from ..strategies.select import find_strategy
from ..sweepfile import FILE, Point, dump_points, read_points
from .jobs import Job, run_jobs
from .live_table import Board
from .together import check_together, run_together

if TYPE_CHECKING:
    from ..sharding.cluster import Client

_log = logging.getLogger("meal_gpu")


def sweep(points: Sequence[Point], directory: str | Path, console: Console, workers: int | None = None,
          scheduler: str | None = None, cuda: bool = False) -> Path:
    """Run what is missing of ``points`` and write the report.

    Parameters
    ----------
    workers
        Processes on this machine; default one per four cores, at most one per run. 0: this one, without Dask; then
        the runs may differ in `engine.experiment.OWN` alone.
    scheduler
        Address of a Dask scheduler, instead. Its workers must see ``directory`` and the data under the same paths.
    cuda
        One worker per GPU of this machine, instead.

    Returns
    -------
    The report's file.

    Raises
    ------
    InputError
        Before anything starts: for a point that cannot run, or a directory that holds other points of these names. In
        the end: when runs failed, naming each with its reason. When the scheduler is lost.
    """
    directory = expand(directory).absolute()
    check_place(directory)
    check(points, directory, data_here=scheduler is None)
    if workers == 0:
        check_together(points)
    missing = [point for point in points if not _is_done(directory / point.name, point.config)]
    failures: dict[str, str] = {}
    place, slots = _workers(len(missing), workers, scheduler, cuda) if missing else (nullcontext(), None)
    with place as client:  # nothing is written where there are no workers
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / ".lock", f"begins a sweep in {directory}", wait_s=cluster.CONNECT_S):
            write_atomic(directory / FILE, dump_points(_with_earlier(points, directory)).encode())
        if client is not None:
            failures = _run(client, missing, directory, console, slots, f"{len(points) - len(missing)} were finished. "
                            if len(missing) < len(points) else "")
        elif missing:
            failures = run_together(missing, directory, console)
    report = directory / "report.html"
    runs = load_sweep(directory)
    if runs:
        write_report(runs, report)
    if failures:
        listed = "\n".join(f"  {name}: {why}" for name, why in failures.items())
        raise InputError(f"{len(failures)} of {len(points)} runs failed, the others are finished:\n{listed}\n"
                         "When the reason is gone, the same command runs these again.")
    return report


def check(points: Sequence[Point], directory: Path, data_here: bool = True) -> None:
    """Raise `InputError` for the first point that could not run. ``data_here``: its data can be looked at as well."""
    opened: dict[DataConfig, Dataset] = {}
    for point in points:
        try:
            find_strategy(point.config.query.strategy)
            if point.config.query.oracle == "people":
                raise InputError("query.oracle is 'people': a sweep cannot wait for labels. Use meal-gpu run for it.")
            check_local(point.config, "a sweep gives each worker a run of its own")
            if (directory / point.name).is_symlink():
                raise InputError(f"{directory / point.name} is a symbolic link, and nothing is written through one: "
                                 "put the directory itself in its place, or remove the link.")
            if (directory / point.name / "config.yaml").is_file():
                check_same_run(directory / point.name, point.config)
            if data_here:
                key = point.config.data
                opened[key] = opened.get(key) or open_dataset(key)
                check_feasible(point.config, opened[key])
                resolve(point.config, find_strategy(point.config.query.strategy).embeds)
        except InputError as error:
            raise InputError(f"Point {point.name}: {error}") from None


def _run(client: "Client", missing: Sequence[Point], directory: Path, console: Console, slots: int | None,
         before: str) -> dict[str, str]:
    """Failed points and why."""
    console.print(f"{before}{len(missing)} runs to do. Dask's dashboard: {client.dashboard_link}", highlight=False,
                  soft_wrap=True)
    todo = []
    for point in missing:
        config = point.config
        if slots is not None:  # each would take half of what is free now
            config = resolve(config, embeds=False).shared(config, slots)
        todo.append(Job(point.name, str(directory / point.name), config.dump()))
    shape = [(point.name, len(point.config.seeds), point.config.query.rounds + 1) for point in missing]
    failures = {}
    with Board(console, shape, directory.name) as board:
        for name, failure in run_jobs(client, todo, board.notice):
            board.end(name, failure)
            if failure:
                failures[name] = failure
    return failures


def _workers(runs: int, workers: int | None, scheduler: str | None,
             cuda: bool) -> tuple["AbstractContextManager[Client | None]", int | None]:
    """Where the runs go, and how many share this machine's memory (None: no telling)."""
    if (workers is not None) + (scheduler is not None) + cuda > 1:
        raise InputError("--workers, --scheduler and --cuda say where the runs go: give one of them.")
    if scheduler is not None:
        return cluster.connected(scheduler), None
    if cuda:
        return cluster.at("cuda"), None
    if workers == 0:
        return nullcontext(), None
    wanted = workers or processes()
    return cluster.at(wanted, most=runs), min(wanted, runs)


def _is_done(directory: Path, config: Config) -> bool:
    return (directory / "report.html").is_file() and finished(directory, config)


def _with_earlier(points: Sequence[Point], directory: Path) -> list[Point]:
    """These points, and those that the directory has runs of from earlier sweeps."""
    names = {point.name for point in points}
    try:
        earlier = read_points(directory) if (directory / FILE).is_file() else []
    except InputError as error:
        earlier = []
        _log.warning("%s It is written anew, with the runs of this call alone.", error)
    return [*points, *(point for point in earlier if point.name not in names)]
