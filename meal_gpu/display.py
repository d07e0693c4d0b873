"""What a run looks like in a terminal: a line per round, and below it which stage, how far, and how long still."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .config import Config
from .earlier import first_patches
from .records import Record

IN_ROUNDS = ("train", "evaluate", "score", "embed")


class Display:
    """Takes a run's ``progress`` and ``observe`` calls. Without a terminal only the lines are printed."""

    def __init__(self, console: Console, config: Config | None = None) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:<24}"), BarColumn(bar_width=28), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), TextColumn("· left"), TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal, speed_estimate_period=900)  # training comes in bursts: look far back
        self.stage: TaskID | None = None
        self.stage_name = ""
        self.work: list[list[float]] = []
        """Per seed and round: patches × epochs, which is what most of the time goes to."""
        if config is not None and (config.query.n_initial_images or config.query.labels_of):
            rounds, initial = config.query.rounds, first_patches(config, 0)
            patches, train = [initial + k * config.query.n_query for k in range(rounds + 1)], config.train
            epochs = [train.lasting(train.final_epochs if k == rounds else train.epochs, n // train.batch_size)
                      for k, n in enumerate(patches)]
            self.work = [[float(n * passes) for n, passes in zip(patches, epochs, strict=True)] for _ in config.seeds]
        self.whole = self.bars.add_task("whole run", total=sum(map(sum, self.work))) if self.work else None
        self.seeds: list[int] = list(config.seeds) if config is not None else []
        self.at = (0, 0)
        self.started = time.perf_counter()

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.bars.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is; see `meal_gpu.timing.Progress`."""
        if stage != self.stage_name or self.stage is None:
            if self.stage is not None:
                self.bars.remove_task(self.stage)
            self.stage, self.stage_name = self.bars.add_task(stage, total=total), stage
        where = f"round {self.at[1]} · {stage}" if self.seeds and stage in IN_ROUNDS else stage
        self.bars.update(self.stage, completed=done, total=total, description=where)
        if self.whole is not None and stage == "train":
            seed, k = self.at
            if seed < len(self.work) and k < len(self.work[seed]):
                before = sum(map(sum, self.work[:seed])) + sum(self.work[seed][:k])
                self.bars.update(self.whole, completed=before + self.work[seed][k] * done / total)

    def observe(self, seed: int, record: Record) -> None:
        """Print a finished round and move on to the next."""
        if record["round"] == 0:
            self.console.print(f"[bold]seed {seed}[/]  round  patches           mIoU  (last epoch)      time")
        spent = sum(record["seconds"].values())
        self.console.print(
            f"        {record['round']:>5}  {record['n_labelled']:>7} {record['fraction']:>7.2%}"
            f"   {number(record['miou']):>7}  {number(record['last']['miou']):>12}  {clock(spent):>8}", highlight=False)
        self.at = (self.seeds.index(seed), record["round"] + 1)
        if self.work and self.at[1] >= len(self.work[self.at[0]]):
            self.at = (self.at[0] + 1, 0)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
