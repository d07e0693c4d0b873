"""A run's records where people look at them (``tracking``): copies of ``rounds.jsonl``, which stays the truth.

A tracker that fails stops no run: that is said once, and the run goes on without it. Going on with a run hands all of
its records over again; no step is ever written twice.
"""

import contextlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from .config import Config
from .errors import first_line
from .files import own_directory, write_atomic
from .records import Record

_log = logging.getLogger("meal_gpu")


class Tracker(ABC):
    """Of one seed of a run."""

    @abstractmethod
    def __init__(self, directory: Path, config: Config, seed: int) -> None:
        """Open it, for a run in ``directory`` that begins or goes on."""

    @abstractmethod
    def record(self, record: Record) -> None:
        """Take the record of a round, perhaps once more."""

    @abstractmethod
    def close(self) -> None:
        """After the last one."""


class TensorBoard(Tracker):
    """Event files in ``DIR/tensorboard/seed-N``, written anew of all records whenever a run goes on."""

    def __init__(self, directory: Path, config: Config, seed: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = own_directory(own_directory(directory / "tensorboard") / f"seed-{seed}")
        for old in folder.glob("events.out.tfevents.*.meal-gpu"):
            old.unlink()
        self.writer: Any = SummaryWriter(str(folder), filename_suffix=".meal-gpu")
        self.writer.add_text("config", "".join(f"    {line}\n" for line in config.dump().splitlines()))

    def record(self, record: Record) -> None:
        for name, value in scalars(record):
            self.writer.add_scalar(name, value, record["round"])
        for name, epoch, value in curves(record):
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class MLflow(Tracker):
    """A run of MLflow per seed, where MLFLOW_TRACKING_URI says. ``DIR/seed-N/mlflow.json`` names it."""

    def __init__(self, directory: Path, config: Config, seed: int) -> None:
        import mlflow

        self.client = mlflow.MlflowClient()
        note = own_directory(directory / f"seed-{seed}") / "mlflow.json"
        self.run = self._held(note)
        if self.run is None:
            experiment = mlflow.set_experiment("meal-gpu").experiment_id
            self.run = self.client.create_run(experiment, run_name=f"{directory.name} seed {seed}").info.run_id
            for key, value in config.flat().items():
                self.client.log_param(self.run, key, str(value)[:500])
            write_atomic(note, json.dumps({"run": self.run}).encode())
        self.client.update_run(self.run, status="RUNNING")
        self.done = {metric.step for metric in self.client.get_metric_history(self.run, "n_labelled")}

    def _held(self, note: Path) -> str | None:
        """The run that this one began with, if the server still has it."""
        with contextlib.suppress(Exception):  # a file that is not there, a server that has forgotten
            return str(self.client.get_run(json.loads(note.read_bytes())["run"]).info.run_id)
        return None

    def record(self, record: Record) -> None:
        if record["round"] in self.done:
            return
        for name, epoch, value in curves(record):
            self.client.log_metric(self.run, name, value, step=epoch)
        for name, value in scalars(record):  # `n_labelled` last: it says that the round is there
            self.client.log_metric(self.run, name.replace(":", "_"), value, step=record["round"])
        self.done.add(record["round"])

    def close(self) -> None:
        self.client.set_terminated(self.run)


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


class Tracking:
    """All trackers of a run, by seed. Use it with ``with``, and hand each record to `observe`."""

    def __init__(self, directory: Path, config: Config) -> None:
        self.directory, self.config = directory, config
        self.left = list(config.tracking)
        self.open: dict[tuple[str, int], Tracker] = {}

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for name, seed in list(self.open):
            self._tried(name, self.open.pop((name, seed)).close)

    def observe(self, seed: int, record: Record) -> None:
        for name in list(self.left):
            self._tried(name, lambda name=name: self._of(name, seed).record(record))  # type: ignore[misc]

    def _of(self, name: str, seed: int) -> Tracker:
        if (name, seed) not in self.open:
            self.open[name, seed] = TRACKERS[name](self.directory, self.config, seed)
        return self.open[name, seed]

    def _tried(self, name: str, work: Callable[[], None]) -> None:
        """A tracker that fails is left alone from then on."""
        try:
            work()
        except ImportError as error:
            self._drop(name, f"{first_line(error)}: pip install 'meal-gpu[{name}]'")
        except Exception as error:  # whatever a library, a server or a disk does
            self._drop(name, f"{type(error).__name__}: {first_line(error)}")

    def _drop(self, name: str, why: str) -> None:
        if name in self.left:
            self.left.remove(name)
            _log.warning("tracking: %s gets no more of this run (%s). The run goes on; its records are in %s.", name,
                         why, self.directory)


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """The numbers of a round by name, without those that are not there; `n_labelled` is the last."""
    scores = [patch["score"] for patch in record["next_query"] if patch["score"] is not None]
    found: dict[str, Any] = {
        "fraction": record["fraction"], "miou": record["miou"], "last/miou": record["last"]["miou"],
        "best_epoch": record["best_epoch"], "query/mean_score": sum(scores) / len(scores) if scores else None,
        **{f"iou/{name}": value for name, value in (record["iou"] or {}).items()},
        **{f"seconds/{name}": value for name, value in record["seconds"].items()},
        "n_labelled": record["n_labelled"]}
    for name, value in found.items():
        if value is not None:
            yield name.replace(" ", "_"), float(value)


def curves(record: Record) -> Iterator[tuple[str, int, float]]:
    """Loss and mIoU of a round's training over its epochs."""
    for entry in record["history"]:
        for what in ("loss", "miou"):
            if entry[what] is not None:
                yield f"round-{record['round']:02d}/{what}", entry["epoch"], float(entry[what])
