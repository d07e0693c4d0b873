"""Reading run directories, finished or not, with every check that the numbers of a report rest on."""

import json
import logging
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ValidationError

from ..config import MACHINE_KEYS, Config
from ..errors import InputError
from ..files import read_arrays, read_own
from ..grid import Grid
from ..paths import expand
from ..records import ENVIRONMENT, ROUNDS, edited, read_config, read_environment, read_rounds
from ..sweepfile import FILE, read_points
from .paper import Reference, reference

_log = logging.getLogger("meal_gpu")

STRATEGIES = {"random": "Random", "entropy": "Entropy", "meal": "MEAL", "meal_ft": "MEAL-FT"}


def _finite(value: Any) -> Any:
    """A diverged training writes NaN; no mean may be taken over it, so it counts as "no value"."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class Patch(BaseModel):
    """A patch of the pool. ``box`` is (y0, x0, y1, x1) in pixels, half open."""

    id: int
    image: str
    row: int
    col: int
    box: tuple[int, int, int, int] | None = None
    score: Number = None


class Evaluation(BaseModel):
    """Scores of one model on the validation set; None where there is no such set, or no such class in it."""

    miou: Number = None
    iou: dict[str, Number] | None = None


class NearDuplicates(BaseModel):
    """Patches that have another within ``distance``, in units of the typical one; ``of`` were looked at."""

    found: int
    of: int
    distance: float


class StopSet(BaseModel):
    """Images whose predictions a round left in ``stop-set/``, and the CRC-32 of these."""

    images: list[int] = []
    predictions: int = 0


class Round(Evaluation):
    """One line of ``rounds.jsonl``; ``miou`` and ``iou`` are those of the best epoch by validation mIoU."""

    round: int
    n_labelled: int
    fraction: float
    best_epoch: int | None = None
    last: Evaluation = Evaluation()
    queried: list[Patch] = []
    next_query: list[Patch] = []
    seconds: dict[str, float] = {}
    peak_bytes: dict[str, int] = {}
    near_duplicates: NearDuplicates | None = None
    pixels: dict[str, int] | None = None
    stop_set: StopSet | None = None
    """None in runs of before, and where nothing was left to draw it from."""


class Dataset(BaseModel):
    name: str
    class_names: list[str]
    palette: list[tuple[int, int, int]]
    n_images: int
    n_val_images: int
    n_patches: int
    n_given: int = 0
    """Images whose labels the run began with; 0 where it began with random images."""


class Environment(BaseModel, extra="allow"):
    dataset: Dataset
    resumed_on: list["Environment"] = []

    @property
    def latest(self) -> Dataset:
        """The data set as the run last saw it: a pool may grow."""
        return self.resumed_on[-1].dataset if self.resumed_on else self.dataset


@dataclass(frozen=True)
class Seed:
    seed: int
    folder: Path
    rounds: list[Round]

    def arrays(self, name: str, at_most: int, fits: Callable[[dict[str, np.ndarray]], str]) -> dict[
            str, np.ndarray] | None:
        """All arrays of an ``.npz`` file of this seed.

        None without one, where it is damaged, has more than so many bytes, or ``fits`` says what is wrong with it. That
        is no reason to go without a report: a line says what was left out.
        """
        path = self.folder / name
        try:
            arrays = read_arrays(path, at_most)
            wrong = fits(arrays)
            if not wrong:
                return arrays
            why = f"{path} is not what this run wrote: {wrong}."
        except FileNotFoundError:
            return None
        except InputError as error:
            why = str(error)
        _log.warning("%s The report leaves it out.", why)
        return None


@dataclass(frozen=True)
class Run:
    """One run directory: what was asked for, where it ran, and the rounds that were finished."""

    path: Path
    config: Config
    environment: dict[str, Any]
    dataset: Dataset
    seeds: list[Seed]
    """Only seeds with at least one finished round."""
    sweep: Path | None = None
    """The sweep's directory, where this is one of its runs, or several that differ in their seeds alone."""
    edited: bool = False
    """Somebody has edited the run by hand, and it was taken as it is."""

    @property
    def supervised(self) -> bool:
        return self.config.query.n_initial_images == 0 and self.config.query.labels_of is None

    @property
    def first(self) -> int:
        """Patches that were labelled before the first training."""
        return self.seeds[0].rounds[0].n_labelled

    @property
    def backbone(self) -> str:
        return "frozen" if self.config.model.freeze_backbone else "finetuned"

    @property
    def title(self) -> str:
        strategy = self.config.query.strategy
        return "Supervised" if self.supervised else STRATEGIES.get(strategy, strategy)

    @property
    def rounds_asked(self) -> int:
        """Rounds that the configuration asks for, the initial one included."""
        return 1 if self.supervised else self.config.query.rounds + 1

    @property
    def rounds_done(self) -> int:
        """Rounds that the seed which came furthest has finished."""
        return max(len(seed.rounds) for seed in self.seeds)

    @property
    def finished(self) -> bool:
        return len(self.seeds) >= len(self.config.seeds) and all(
            len(seed.rounds) >= self.rounds_asked for seed in self.seeds)

    @property
    def resume_command(self) -> str:
        if self.sweep is not None:
            return sweep_command(self.sweep)
        return _resume_command(self.path)

    @property
    def n_classes(self) -> int:
        return len(self.dataset.class_names)

    @cached_property
    def reference(self) -> Reference | None:
        return reference(self.config)

    def at(self, number: int) -> list[Round]:
        """The records of round ``number``, one for each seed that has finished it."""
        return [seed.rounds[number] for seed in self.seeds if number < len(seed.rounds)]

    def seconds(self) -> dict[str, float]:
        """Total seconds per stage, over all rounds and seeds, in the order in which stages first appear."""
        totals: dict[str, float] = {}
        for seed in self.seeds:
            for record in seed.rounds:
                for stage, value in record.seconds.items():
                    totals[stage] = totals.get(stage, 0.0) + value
        return totals


def load_run(path: str | Path) -> Run:
    """Read a run directory. Raises `InputError` where it is none, a file is unreadable, or no round is finished."""
    path = expand(path)
    if not (path / "config.yaml").is_file():
        found = "no such directory" if not path.exists() else "no config.yaml there"
        raise InputError(f"'{path}' is not a run directory ({found}). A run directory holds config.yaml, "
                         "environment.json and seed-0/rounds.jsonl: it is what 'meal-gpu run CONFIG --out DIR' writes.")
    config = read_config(path)
    seeds = []
    for folder in path.glob("seed-*"):
        if re.fullmatch(r"seed-\d+", folder.name) and os.path.lexists(folder / "rounds.jsonl"):
            seeds.append(Seed(int(folder.name[5:]), folder, _rounds(folder, config.data.tiling())))
    seeds = sorted((seed for seed in seeds if seed.rounds), key=lambda seed: seed.seed)
    if not seeds:
        raise InputError(f"'{path}' holds no finished round yet, so there is nothing to report. Finish one with: "
                         f"{_resume_command(path)}")
    environment, dataset = _environment(path, config, seeds)
    _check_pool(seeds, dataset.n_patches)
    return Run(path, config, environment, dataset, seeds, edited=edited(path))


def load_sweep(directory: str | Path) -> list[Run]:
    """The runs of a sweep that have a finished round, those that differ in their seeds alone as one run.

    Raises `InputError` where there is no sweep, or a run is damaged.
    """
    directory = expand(directory)
    groups: dict[str, list[Run]] = {}
    for point in read_points(directory):
        if _begun(directory / point.name):
            run = load_run(directory / point.name)
            keys = {key: value for key, value in run.config.flat().items() if key not in (*MACHINE_KEYS, "seeds")}
            groups.setdefault(json.dumps([keys, run.dataset.model_dump()]), []).append(run)
    return [_merged(runs, directory) for runs in groups.values()]


def load_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs in directories of runs and of sweeps. Raises `InputError` as `load_run` and `load_sweep` do."""
    runs = []
    for directory in map(expand, directories):
        if not (directory / FILE).is_file():
            runs.append(load_run(directory))
            continue
        found = load_sweep(directory)
        if not found:
            raise InputError(f"No run of the sweep '{directory}' has finished a round yet. Go on with it: "
                             f"{sweep_command(directory)}")
        runs += found
    return runs


def not_begun(directory: Path) -> list[str]:
    """Names of a sweep's runs without a finished round."""
    return [point.name for point in read_points(directory) if not _begun(directory / point.name)]


def sweep_command(directory: Path) -> str:
    """The command that goes on with a sweep."""
    return f"meal-gpu sweep --resume {shlex.quote(str(directory))}"


def _begun(run: Path) -> bool:
    return any(b"\n" in read_own(file) for file in run.glob("seed-*/rounds.jsonl"))


def _merged(runs: Sequence[Run], directory: Path) -> Run:
    seeds = sorted((seed for run in runs for seed in run.seeds), key=lambda seed: seed.seed)
    asked = sorted({seed for run in runs for seed in run.config.seeds})
    name = runs[0].path.name if len(runs) == 1 else re.sub(r"seed-\d+", "seed-*", runs[0].path.name)
    return replace(runs[0], path=directory / name, config=runs[0].config.model_copy(update={"seeds": asked}),
                   seeds=seeds, sweep=directory)


def _resume_command(path: Path) -> str:
    return f"meal-gpu run --resume {shlex.quote(str(path))}"


def _environment(path: Path, config: Config, seeds: Sequence[Seed]) -> tuple[dict[str, Any], Dataset]:
    """What ``environment.json`` says; of the data set what the rounds tell, where it says nothing."""
    first, grid = seeds[0].rounds[0], config.data.tiling()
    n_patches = round(first.n_labelled / first.fraction) if first.fraction > 0 else 0
    try:
        environment = read_environment(path)
        dataset = Environment.model_validate(environment).latest
        if first.iou is None or list(first.iou) == dataset.class_names:
            return environment, dataset
        why = f"{path / ENVIRONMENT} is of another run: its classes are not those of the rounds."
    except ValidationError as error:
        why = f"{path / ENVIRONMENT} is not what a run writes: {_first(error)}."
    except InputError as error:
        why = str(error)
    _log.warning("%s The report leaves out the machine, the classes' colours and the number of validation images.", why)
    return {}, Dataset(name=config.data.dataset, class_names=list(first.iou or {}), palette=[],
                       n_images=n_patches // grid.cells, n_val_images=0, n_patches=n_patches)


def _check_pool(seeds: Sequence[Seed], n_patches: int) -> None:
    for seed in seeds:
        for record in seed.rounds:
            for patch in [*record.queried, *record.next_query]:
                if not 0 <= patch.id < n_patches:
                    raise InputError(
                        f"{seed.folder / ROUNDS}, line {record.round + 1} names patch {patch.id}; the pool of "
                        f"environment.json has 0 to {n_patches - 1}. The files are of different runs: restore them.")


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'the whole'}: {detail['msg'].lower()}"


def _rounds(folder: Path, grid: Grid) -> list[Round]:
    """The finished rounds of a seed. A last line that a kill left half-written is no finished round."""
    rounds: list[Round] = []
    for number, values in enumerate(read_rounds(folder), start=1):
        try:
            record = Round.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{folder / ROUNDS}, line {number} is damaged: {_first(error)}.") from None
        for patch in [*record.queried, *record.next_query]:
            wrong = grid.check(patch.model_dump())
            if wrong is not None:
                raise InputError(f"{folder / ROUNDS}, line {number} is damaged: {wrong}. Restore the file, or delete "
                                 "its lines from that one on.")
        rounds.append(record)
    return rounds
