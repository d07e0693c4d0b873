"""What every part of the benchmark writes: one schema, versioned.

``--json`` writes it, ``--compare``, the terminal's table, the HTML page and the docs' tables read it. Samples are
kept, so that a reader can take other statistics of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field

from meal_gpu.errors import InputError
from meal_gpu.files import write_atomic
from meal_gpu.planning.roofline import Roofs, Work

from .timing.measure import Timing, quantile
from .timing.memory import Peak

SCHEMA = 1
"""Raised when the meaning of a field changes; files of other versions are refused."""
Part = Literal["round", "train", "kernels", "embed", "strategies", "query", "data", "stream", "scale"]
"""In the order in which results are shown."""


class WrongResultError(RuntimeError):
    """What is to be timed does not compute what it should: its speed means nothing."""


class _Model(BaseModel):
    # Derived values are written for readers and recomputed on loading, so they are extra there.
    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=False)


class Times(_Model):
    """Samples of one thing, in seconds per call."""

    seconds: tuple[float, ...]
    calibrated: tuple[float, ...] = ()
    """The same in units of the processors' calibration beside each; empty where none ran."""

    by_memory: tuple[float, ...] = ()
    """The same in units of the memory's calibration."""

    lost: float = 0.0
    """Share of the time that other processes took: 0 on a quiet machine."""

    @classmethod
    def of(cls, timing: Timing) -> "Times":
        return cls(seconds=timing.seconds, calibrated=timing.calibrated, by_memory=timing.by_memory, lost=timing.lost)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_ms(self) -> float:
        return 1e3 * quantile(self.seconds, 0.5)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def low_ms(self) -> float:
        """20 % of the samples are faster."""
        return 1e3 * quantile(self.seconds, 0.2)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def high_ms(self) -> float:
        """80 % of the samples are faster."""
        return 1e3 * quantile(self.seconds, 0.8)


class Baseline(_Model):
    """Something else that does the stage's work. What differs from ours beyond its bound is not timed."""

    name: str
    times: Times | None
    """None: left out, see ``note``."""
    ratio: tuple[float, float, float] | None = None
    """How many times faster ours is: 20 %, median and 80 % over the rounds, of which each ran both."""
    items: int = 0
    """On how many items both were timed for the ratio, where that is not the stage's own number."""
    error: float | None = None
    """Its distance from ours, in the terms of ``checked``."""
    checked: str = ""
    """What was compared, and the bound."""
    note: str = ""


class Stage(_Model):
    """One stage: what it did, how long that took, what that is in terms of the machine."""

    name: str
    items: int
    unit: str
    """What an item is: images, patches, ..."""
    times: Times
    work: Work = Work()
    roof_ms: float = 0.0
    """The least time for that work on this machine; 0 where nothing was counted."""
    bound: str = ""
    """``memory``, ``exp``, ``FLOP``, ``decode`` or ``host``: what gives ``roof_ms``."""
    peak: Peak = Peak()
    per_round: float = 0.0
    """How many times a round of this configuration runs it; 0 for what is done once and kept."""
    share_of_round: float = 0.0
    baselines: tuple[Baseline, ...] = ()
    note: str = ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def items_per_second(self) -> float:
        return self.items / (self.times.median_ms / 1e3)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gbytes_per_second(self) -> float:
        return self.work.bytes / self.times.median_ms / 1e6

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gflops_per_second(self) -> float:
        return self.work.flops / self.times.median_ms / 1e6

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share_of_roof(self) -> float:
        return self.roof_ms / self.times.median_ms


class Whole(_Model):
    """A whole round, measured in one go, beside what its stages add up to."""

    times: Times
    stage_sum_ms: float
    content: str
    """What the round contained."""
    clock_ms: dict[str, float] = {}
    """What the round's own clock says of its stages, in the order in which they ended: median over the rounds."""
    checking_ms: float = 0.0
    """In them, for comparing what is read from the store with its checksums: median over the rounds."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gap(self) -> float:
        """Share of the whole that no stage explains: host work between stages, and waiting.

        Negative where the stages, measured alone at other moments, took longer than within the round.
        """
        return 1 - self.stage_sum_ms / self.times.median_ms


class Growth(_Model):
    """How time and memory of a stage grow with the size of something: ``seconds ~ size ** exponent``."""

    stage: str
    over: str
    """What was varied."""
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]
    host_bytes: tuple[int, ...]
    """Memory added on the host at the highest."""
    exponent: float
    memory_exponent: float | None
    """None where too little memory is added to be fitted."""


class Estimate(_Model):
    """Arithmetic about a machine that nobody has measured: counts over the rates of a data sheet."""

    stage: str
    device: str
    work: Work
    milliseconds: float
    """At least: the larger of the next two."""
    gpu_ms: float = 0.0
    host_ms: float = 0.0
    launches: int = 0
    """Operations that the host starts; ``host_ms`` is 0 where they are replayed as graphs."""
    bound: str
    label: Literal["estimate"] = "estimate"


class Curve(_Model):
    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


class Chart(_Model):
    """Curves that no stage of this machine has: what a simulation gives, say."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    note: str
    """Where the numbers come from."""


class Result(_Model):
    """One run of one part."""

    schema_version: Literal[1] = 1
    part: Part
    subject: str
    """What was measured, for people."""
    settings: dict[str, Any]
    """All that decides what work is done. Results of different settings are not compared."""
    machine: dict[str, Any]
    device: str
    roofs: Roofs
    stages: tuple[Stage, ...]
    whole: Whole | None = None
    growth: tuple[Growth, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def write(self, file: Path) -> None:
        write_atomic(file, (self.model_dump_json(indent=1) + "\n").encode())

    @classmethod
    def read(cls, file: Path) -> "Result":
        """Raises `InputError` for what is not a result, or one of another version of the schema."""
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read as a benchmark's result: {error}. Give a file that --json wrote."
                             ) from None
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA:
            raise InputError(f"{file} has schema_version {version}, and this version reads {SCHEMA}. Measure again "
                             "with --json.")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{file} is not a benchmark's result: {'.'.join(map(str, first['loc']))}: {first['msg']}. "
                             "Give a file that --json wrote.") from None


def stage(name: str, items: int, unit: str, timing: Timing, roofs: Roofs, work: Work,
          peak: Peak, **more: Any) -> Stage:
    """A stage with its roof."""
    least, bound = roofs.least(work)
    return Stage(name=name, items=items, unit=unit, times=Times.of(timing), work=work, roof_ms=1e3 * least, bound=bound,
                 peak=peak, **more)


def baseline(name: str, ours: Timing, other: Timing, error: float, checked: str, items: int = 0,
             note: str = "") -> Baseline:
    ratios = ours.ratios(other)
    return Baseline(name=name, times=Times.of(other), ratio=(quantile(ratios, 0.2), quantile(ratios, 0.5),
                    quantile(ratios, 0.8)), items=items, error=error, checked=checked, note=note)


def shared(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with their shares of a round of the configuration."""
    total = sum(one.per_round * one.times.median_ms for one in stages) or 1.0
    return tuple(one.model_copy(update={"share_of_round": one.per_round * one.times.median_ms / total})
                 for one in stages)
