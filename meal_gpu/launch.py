"""Start a run, or go on with one: its directory, its seeds, its report."""

import errno
import logging
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

from .config import MACHINE_KEYS, Config
from .data.datasets import Dataset, open_dataset
from .data.ingest import Stores
from .data.order import Order, arrange, changes
from .engine.experiment import Experiment, prepare
from .engine.given import GivenOracle
from .engine.learning import tell
from .engine.oracle import Oracle, SimulatedOracle
from .engine.rounds import run_seed
from .engine.surroundings import environment, note_machine, note_pool, order_of
from .errors import InputError
from .files import own_directory, remove_leftovers
from .journal import JOURNAL, accept_journal
from .labelling.people import PeopleOracle
from .locks import locked
from .paths import expand, nearest, settle_home
from .records import (
    Record,
    accept_changes,
    read_config,
    read_rounds,
    write_config,
    write_environment,
)
from .report import load_run, write_report
from .timing import Progress, no_progress
from .tracking import Tracking

UNFINISHED = (".lock", "environment.json", ".environment.json.", "pool.json", ".pool.json.", ".config.yaml.")
"""How the files begin that are there when a run is killed before its ``config.yaml``, which makes it one."""

_log = logging.getLogger("meal_gpu")

Observer = Callable[[int, Record], None]
"""Called with the seed and the record of every round, finished ones of a resumed run included."""


def run(config: Config, out: str | Path | None = None, progress: Progress = no_progress,
        observe: Observer = lambda seed, record: None) -> Path:
    """Run all seeds of a config and write the report.

    Parameters
    ----------
    out
        The run's directory; default ``runs/<dataset>-<strategy>-<time>``.

    Returns
    -------
    The run's directory (see docs/run-directory.md).

    Raises
    ------
    InputError
        Bad input or configuration, no space left, an ``out`` that already holds a run.
    LabelsMissingError
        ``query.oracle`` is ``people`` and they have not labelled the query yet: `resume` when they have.
    """
    directory = expand(out) if out is not None else default_directory(config)
    check_place(directory)
    check_new(directory)
    with _explained(directory), _prepared(config, progress) as experiment:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory):
            if (directory / "config.yaml").exists():
                raise InputError(f"Another process has just started a run in {directory}: give another --out.")
            _begin(experiment, directory)
            return _run(experiment, directory, observe)


def check_new(directory: Path) -> None:
    """Raise `InputError` where a directory holds a run, or something else."""
    if (directory / "config.yaml").exists():
        raise InputError(f"{directory} already holds a run. Go on with it: meal-gpu run --resume {directory}. "
                         "Or give another --out.")
    if directory.exists() and not all(entry.name.startswith(UNFINISHED) for entry in directory.iterdir()):
        raise InputError(f"{directory} is not empty and holds no run: give an empty or a new directory as --out.")


def run_or_resume(config: Config, directory: str | Path, progress: Progress = no_progress,
                  observe: Observer = lambda seed, record: None, wait_s: float = 0,
                  prepared: Callable[[Config, Progress], AbstractContextManager[Experiment]] | None = None) -> Path:
    """Start the run of ``config`` in ``directory``, or go on with it from wherever it was killed; a sweep's `run`.

    Unlike `run` it takes a directory as a kill may leave it, and unlike `resume` it repeats nothing for a finished run.

    Parameters
    ----------
    wait_s
        Seconds to wait while another process, perhaps one that is being stopped, holds the directory.
    prepared
        Where the experiment comes from; default: made for this run. Called when there is something to do.

    Raises
    ------
    InputError
        As `run` does, and where the directory holds a run of another config (`MACHINE_KEYS` may differ).
    """
    directory = expand(directory)
    with _explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory, wait_s):
            begun = (directory / "config.yaml").is_file()
            if begun:
                check_same_run(directory, config)
            if begun and finished(directory, config):
                write_report([load_run(directory)], directory / "report.html")
                return directory
            pool = pool_of(directory, config) if begun else None
            with prepared(config, progress) if prepared else _prepared(config, progress, pool) as experiment:
                if begun:
                    _note(experiment, directory)
                else:
                    _begin(experiment, directory)
                return _run(experiment, directory, observe)


def check_place(directory: Path) -> None:
    """Raise `InputError` where there cannot be a directory, or none can be written."""
    trouble = ""
    try:
        if not stat.S_ISDIR(directory.stat().st_mode):
            trouble = "it is a file"
        elif not os.access(directory, os.W_OK | os.X_OK):
            trouble = "it may not be written"
    except FileNotFoundError:
        if directory.is_symlink():
            trouble = "it is a link that leads nowhere"
        else:
            above = nearest(directory)
            if not os.access(above, os.W_OK | os.X_OK):
                trouble = f"{above} may not be written"
    except NotADirectoryError:
        trouble = f"{nearest(directory)} is a file"
    except OSError as error:
        trouble = str(error.strerror)
    if trouble:
        shown = str(directory) if len(str(directory)) < 300 else f"{str(directory)[:300]} …"
        raise InputError(f"{shown} cannot be written to: {trouble}. Give another --out.")


def finished(directory: Path, config: Config) -> bool:
    """Whether every seed of a run has all of its rounds."""
    return all(len(read_rounds(directory / f"seed-{seed}")) > config.query.rounds for seed in config.seeds)


def check_same_run(directory: Path, config: Config) -> None:
    """Raise `InputError` where the run in ``directory`` was made with another config, `MACHINE_KEYS` apart."""
    held, asked = read_config(directory).flat(), config.flat()
    for key in held:
        if held[key] != asked[key] and key not in MACHINE_KEYS:
            raise InputError(f"{directory} holds a run with {key}: {held[key]}, and {asked[key]} is asked for now. Use "
                             f"another --out, or move {directory} away.")


def resume(directory: str | Path, overrides: list[str] | None = None, progress: Progress = no_progress,
           observe: Observer = lambda seed, record: None, accept: bool = False) -> Path:
    """Go on with a run from its finished rounds; a finished run only gets its report again.

    ``overrides`` may name what belongs to the machine: `MACHINE_KEYS`. What somebody has edited in the run since, or in
    its labels, is taken with ``accept``, and refused without. Raises as `run` does.
    """
    directory = expand(directory)
    config = load_resumed(directory, overrides, accept)
    with (_explained(directory), _prepared(config, progress, pool_of(directory, config)) as experiment,
          _alone(directory)):
        _note(experiment, directory)
        return _run(experiment, directory, observe, accept)


def load_resumed(directory: Path, overrides: list[str] | None = None, accept: bool = False) -> Config:
    """The config of a run that is to go on. Raises `InputError` where there is no run, or for another override."""
    for override in overrides or []:
        if override.partition("=")[0] not in MACHINE_KEYS:
            raise InputError(f"--set {override} would make it another run. With --resume these may change: "
                             f"{', '.join(MACHINE_KEYS)}.")
    if not (directory / "config.yaml").is_file():
        raise InputError(f"{directory} holds no run (no config.yaml). Start one with meal-gpu run CONFIG --out DIR.")
    if accept:
        accept_edited(directory)
    return read_config(directory, overrides)


def accept_edited(directory: Path) -> None:
    """Take a run as somebody has edited it, and say what was. Raises `InputError` where it cannot be read."""
    with _explained(directory), _alone(directory):
        changed = accept_changes(directory)
        changed += [f"{file.parent.name}/{JOURNAL}" for file in sorted(directory.glob(f"seed-*/{JOURNAL}"))
                    if accept_journal(file.parent)]
        for name in changed:
            _log.warning("%s: %s was edited since it was written. It is taken as it is, and reports of this run say "
                         "so.", directory, name)


def seed_of(config: Config, asked: int | None) -> int:
    """A seed of a run, by default its first. Raises `InputError` for one that it does not have."""
    if asked is not None and asked not in config.seeds:
        raise InputError(f"--seed is {asked}, and the seeds of this run are {', '.join(map(str, config.seeds))}.")
    return config.seeds[0] if asked is None else asked


def default_directory(config: Config) -> Path:
    backbone = "" if config.model.freeze_backbone else "-finetune"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.data.dataset}-{config.query.strategy}{backbone}-{stamp}"


def _begin(experiment: Experiment, directory: Path) -> None:
    """Make a directory a run's. ``config.yaml`` is what makes it one; its name seals what follows."""
    order_of(experiment).write(directory)
    write_config(directory, experiment.config)
    write_environment(directory, environment(experiment))


def _note(experiment: Experiment, directory: Path) -> None:
    """Keep what a run goes on with: the machine, and the images that have come since."""
    note_machine(directory, environment(experiment))
    note_pool(experiment, directory)


def pool_of(directory: Path, config: Config) -> Dataset:
    """The data set with the pool in the run's order; says what has changed since the run last went on."""
    order, dataset = Order.read(directory), open_dataset(config.data)
    if order is None:
        return dataset
    dataset = arrange(dataset, order)
    for line in changes(order.names, [sample.name for sample in dataset.train if not sample.gone]):
        _log.info("Since the run last went on: %s", line)
    return dataset


@contextmanager
def _prepared(config: Config, progress: Progress, dataset: Dataset | None = None) -> Iterator[Experiment]:
    settle_home()
    experiment = prepare(config, progress, dataset)
    try:
        yield experiment
    finally:
        experiment.close()


def _run(experiment: Experiment, directory: Path, observe: Observer, accept: bool = False) -> Path:
    tell(experiment.config)
    with Tracking(directory, experiment.config) as tracking:
        def observed(seed: int, record: Record) -> None:
            tracking.observe(seed, record)
            observe(seed, record)

        for seed in experiment.config.seeds:
            folder = own_directory(directory / f"seed-{seed}")
            oracle = oracle_of(experiment.config, experiment.stores, folder)
            run_seed(experiment, seed, folder, oracle, partial(observed, seed), accept)
    write_report([load_run(directory)], directory / "report.html")
    return directory


def oracle_of(config: Config, stores: Stores, directory: Path) -> Oracle:
    """Who labels the run of a seed's directory."""
    store, dataset, grid = stores.train, stores.dataset, config.data.tiling()
    if config.query.oracle == "people":
        people = PeopleOracle(directory, dataset.train, grid, dataset.rules(config.data), config.query.annotators)
        if dataset.given is None or store.masks is None:
            return people
        return GivenOracle(SimulatedOracle(store.masks, grid), people)
    assert store.masks is not None  # `prepare` has checked
    return SimulatedOracle(store.masks, grid)


@contextmanager
def _alone(directory: Path, wait_s: float = 0) -> Iterator[None]:
    """Two processes in one run directory would interleave their rounds."""
    with locked(directory / ".lock", f"is running in {directory}", wait_s=wait_s):
        remove_leftovers(directory)
        yield


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn what the file system refuses into a message that says what is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        kept = (f"All finished rounds are kept; when that is put right, go on with: meal-gpu run --resume "
                f"{shlex.quote(str(directory))}") if (directory / "config.yaml").exists() else "Give another --out."
        raise InputError(f"Cannot write {error.filename2 or error.filename or directory}: {error.strerror}. {kept}"
                         ) from error


_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EISDIR,
            errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
