"""``--compare OLD.json``: which stages have become slower, by a rule that a busy machine does not fool.

The rule. Of a stage, six ratios new / old are taken: of the median and of the best fifth (20 % quantile) of the
samples, each in seconds and calibrated (`measure`: without the time that other processes took, in units of a workload
of the processors or of the memory timed beside every sample). The *smallest* of the six is what the stage has surely
lost: a machine that was slower as a whole, or in its memory, cancels in the calibrated ones, a calibration that was
disturbed does not show in the seconds, and a few slow samples do not move the best fifth. The stage regresses where
that exceeds 1 + tolerance + spread + lost. The spread is half the distance from the 20 % to the 80 % quantile over the
median, of the noisier of the two runs, in whichever unit is the steadiest: a stage that jumps by 20 % within a run
cannot be judged to 10 %. With fewer than five samples the spread counts as 10 % at least. Lost is the share of time
that other processes took in the more disturbed run: who had the processors had caches too, which nothing here sees. It
is 0 on a quiet machine, so compare results of quiet ones. A slowdown below the tolerance is thus never reported; one
above it is the surer to be reported, the steadier the stage is.

What no spread within a run tells of: a process may be slower for as long as it lives, or a neighbour works, by the
memory that it was given, by the cache that it shares. So what seems slower is measured again (`confirmed`), where that
can be done, and counts only if it stays so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meal_gpu.errors import InputError

from ..result import Result, Times
from ..timing.measure import quantile

WHOLE = "whole round"
AGAIN = 2
"""What seems slower is measured so many times more, and must be slower in all."""
MACHINE_KEYS = ("cpu", "gpu", "cores", "threads")
FEW_SAMPLES, FEW_SPREAD = 5, 0.10


@dataclass(frozen=True)
class Verdict:
    stage: str
    old_ms: float
    new_ms: float
    slower: float
    """How many times slower at the least: the smallest of the six ratios."""
    limit: float

    @property
    def regressed(self) -> bool:
        return self.slower > self.limit

    def __str__(self) -> str:
        return (f"{self.stage}: {self.old_ms:.2f} → {self.new_ms:.2f} ms, at least {self.slower - 1:+.0%} "
                f"(allowed {self.limit - 1:+.0%})")


def compare(old: Result, new: Result, tolerance: float) -> list[Verdict]:
    """Judge every stage, and the whole round, that both have; worst first.

    Raises `InputError` where the two did not do the same work on the same machine.
    """
    check_comparable(old, new)
    pairs = [(stage.name, old.stage(stage.name).times, stage.times) for stage in new.stages
             if any(stage.name == other.name for other in old.stages)]
    if old.whole and new.whole:
        pairs.append((WHOLE, old.whole.times, new.whole.times))
    return sorted((judge(*pair, tolerance) for pair in pairs), key=_margin)


def confirmed(old: Result, new: Result, tolerance: float, again: Callable[[list[str]], Result]) -> list[Verdict]:
    """`compare`; while stages seem slower they are measured `AGAIN`. What was measured again counts by its best.

    ``again`` measures the stages of the names given, which may be `WHOLE`, and may measure others as well.
    """
    verdicts = compare(old, new, tolerance)
    for _ in range(AGAIN):
        slower = [verdict.stage for verdict in verdicts if verdict.regressed]
        if not slower:
            break
        found = again(slower).model_copy(update={"settings": new.settings})
        repeated = {verdict.stage: verdict for verdict in compare(old, found, tolerance)}
        verdicts = [max(verdict, repeated.get(verdict.stage, verdict), key=_margin) for verdict in verdicts]
    return sorted(verdicts, key=_margin)


def _margin(verdict: Verdict) -> float:
    return verdict.limit - verdict.slower


def judge(name: str, old: Times, new: Times, tolerance: float) -> Verdict:
    """The rule of this module for one stage."""
    in_all = ((old.seconds, new.seconds), (old.calibrated, new.calibrated), (old.by_memory, new.by_memory))
    units = [(before, after) for before, after in in_all if before and after]
    slower = min(quantile(after, q) / quantile(before, q) for before, after in units for q in (0.2, 0.5))
    spread = min(max(_spread(before), _spread(after)) for before, after in units)
    return Verdict(name, old.median_ms, new.median_ms, slower, 1 + tolerance + spread + max(old.lost, new.lost))


def _spread(samples: Sequence[float]) -> float:
    half = (quantile(samples, 0.8) - quantile(samples, 0.2)) / 2 / quantile(samples, 0.5)
    return half if len(samples) >= FEW_SAMPLES else max(half, FEW_SPREAD)


def check_comparable(old: Result, new: Result) -> None:
    """Raise `InputError` where a difference in time would not be one of the code."""
    if old.part != new.part:
        raise InputError(f"The old result is of bench {old.part}, the new one of bench {new.part}: compare equal "
                         "parts.")
    for key in sorted(old.settings.keys() | new.settings.keys()):
        if old.settings.get(key) != new.settings.get(key):
            raise InputError(f"The results did different work: {key} was {old.settings.get(key)!r} and is "
                             f"{new.settings.get(key)!r}. Measure with equal settings.")
    for key in MACHINE_KEYS:
        if old.machine.get(key) != new.machine.get(key):
            raise InputError(f"The results are of different machines: {key} was {old.machine.get(key)!r} and is "
                             f"{new.machine.get(key)!r}. Measure the old code on this machine.")
    if old.device != new.device:
        raise InputError(f"The results are of different devices, {old.device} and {new.device}.")


def tolerance_of(text: str) -> float:
    """``10%`` or ``0.1`` → 0.1. Raises `InputError` for anything else."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise InputError(f"--tolerance is {text!r}: give a share such as 10% or 0.1.")
    return value
