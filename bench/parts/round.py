"""``meal-gpu bench [CONFIG]``: a whole acquisition round, stage by stage, and in one go."""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch

from meal_gpu.config import Config
from meal_gpu.data.store import Checksums
from meal_gpu.engine.acquire import acquire
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.learning import learn
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.engine.rounds import initial_patches
from meal_gpu.planning.roofline import Roofs
from meal_gpu.timing import StageClock

from ..result import Baseline, Part, Result, Stage, Times, Whole, baseline, shared, stage
from ..subjects.ground import Ground, limited
from ..timing.measure import Calibration, Effort, Sample, Timer, Timing, interleaved
from ..timing.memory import peak
from ..timing.roofs import card, measure_roofs
from .stages import BESIDE, Case, cases

SLOW_SECONDS = 4.0
"""A call that takes longer is timed three times instead of five."""


def run(config: Config, effort: Effort, only: Collection[str] = (), whole: int = 2, compare: bool = True,
        images: int = 0, part: Part = "round", make: Callable[[Ground], list[Case]] = cases,
        tell: Callable[[str], None] = lambda doing: None,
        done: Callable[[Stage], None] = lambda stage: None) -> Result:
    """Measure the stages of a round, or those of another part that ``make`` makes.

    Parameters
    ----------
    only
        Names of stages to measure; none: all.
    whole
        How many times to measure a whole round in one go.
    compare
        Also time the baselines. Ours is compared with theirs in any case.
    images
        Use a part of the pool, evenly spaced; 0: all of it.
    tell
        Called with what is being done.
    done
        Called with each stage as it is measured.

    Raises
    ------
    InputError
        For bad input, a pool without masks among it.
    WrongResultError
        A stage does not compute what its baseline computes.
    """
    config = as_benchmarked(config)
    with tempfile.TemporaryDirectory(prefix="meal-gpu-bench-") as name:
        folder = Path(name)
        tell("making the pool ready")
        ground = Ground.of(in_store(config, folder / "store"), folder, images)
        found = [case for case in make(ground) if not only or case.name in only]
        device = ground.experiment.backend.device
        tell("measuring the machine's roofs")
        roofs = measure_roofs(device, ground.experiment.backend.dtype,
                              [sample.image for sample in ground.experiment.stores.dataset.train[: ground.n]])
        calibration = Calibration(device)
        stages = []
        for number, case in enumerate(found, 1):
            tell(f"measuring {case.name} ({number} of {len(found)})")
            stages.append(measured(case, roofs, effort, device, calibration, compare))
            done(stages[-1])
        subject, notes = describe(ground), acquisition(ground, stages) if part == "round" else []
        total = sum(case.in_whole * one.times.median_ms for case, one in zip(found, stages, strict=True))
        del ground, found  # the next round needs the memory
        times, rounds = whole if part == "round" and not only else 0, []
        for number in range(times):
            tell(f"measuring a whole round ({number + 1} of {times})")
            rounds.append(whole_round(config, folder, Timer(device), calibration, images))
        at_once = _whole(rounds, total) if rounds else None
    return Result(part=part, subject=subject, settings=settings(config, only, images), machine=card(),
                  device=device.type, roofs=roofs, stages=shared(stages), whole=at_once, notes=tuple(notes))


def as_benchmarked(config: Config) -> Config:
    """One seed, MEAL unless MEAL-FT is asked for, entropy: the whole procedure."""
    strategy = config.query.strategy if config.query.strategy in ("meal", "meal_ft") else "meal"
    one = config.model_copy(update={"seeds": config.seeds[:1]})
    return one.revised("query", strategy=strategy, score="entropy", oracle="simulated")


def in_store(config: Config, store: Path) -> Config:
    return config.revised("data", store=store)


def settings(config: Config, only: Collection[str] = (), images: int = 0) -> dict[str, object]:
    """All that decides what work is done; not where the files are."""
    content = config.model_dump(mode="json", exclude={"data": {"root", "store"}, "model": {"weights"}})
    return {**content, "only": sorted(only), "images": images}


def measured(case: Case, roofs: Roofs, effort: Effort, device: torch.device, calibration: Calibration,
             compare: bool = True) -> Stage:
    """Check a stage against its baselines, then time it and them."""
    checks = [rival.check(case.name) for rival in case.rivals]
    with peak(device) as memory:
        once = Timer(device)(case.run)
    if once > SLOW_SECONDS:
        effort = Effort(effort.seconds, min(effort.min_rounds, 3), 3, 0.0)
    timing = interleaved({case.name: case.run}, effort, device, calibration)[case.name]
    others: list[Baseline] = []
    for rival, (error, checked) in zip(case.rivals, checks, strict=True) if compare else ():
        few = Effort(effort.seconds, min(effort.min_rounds, 3), effort.max_rounds, 0.0)
        both = interleaved({"ours": rival.ours, "theirs": rival.run}, few, device)
        others.append(baseline(rival.name, both["ours"], both["theirs"], error, checked, rival.items))
    found = stage(case.name, case.items, case.unit, timing, roofs, case.work, memory, per_round=case.per_round,
                  baselines=tuple(others), note=case.note)
    if found.bound and found.share_of_roof < 0.5 and case.name in BESIDE:
        why = f"{found.share_of_roof:.0%} of its roof: {BESIDE[case.name]}"
        found = found.model_copy(update={"note": f"{found.note}; {why}" if found.note else why})
    return found


def whole_round(config: Config, folder: Path, timer: Timer, calibration: Calibration,
                images: int = 0) -> tuple[Sample, dict[str, float], float]:
    """From image files to the labels of the first query, with one epoch of training and one evaluation.

    Its time, the seconds of its stages by the round's own clock, and those that checking took of them.
    """
    clock, checking = StageClock(timer.device), [0.0]

    def go(store: Path) -> None:
        short = in_store(config, store).revised("train", epochs=1, final_epochs=1, eval_every=1)
        with clock.stage("ingest and features"):
            experiment = prepare(short, dataset=limited(short, images))
        pool, seed = experiment.new_pool(), short.seeds[0]
        masks = experiment.stores.train.masks
        assert masks is not None
        oracle = SimulatedOracle(masks, experiment.grid)
        asked = initial_patches(experiment, seed)
        pool.reveal(asked, oracle.label(0, asked))
        model, _ = learn(experiment, pool, seed, 0, clock)
        chosen = acquire(experiment, pool, model, seed, 0, clock)
        with clock.stage("reveal"):
            pool.reveal(chosen.ids, oracle.label(1, chosen.ids))

    with tempfile.TemporaryDirectory(prefix="whole-", dir=folder) as store, _counted(checking):
        sample = Sample.take(lambda: go(Path(store)), timer, calibration=calibration)
    return sample, clock.seconds, checking[0]


@contextmanager
def _counted(seconds: list[float]) -> Iterator[None]:
    """Add to the one number what the comparing of a store's checksums takes meanwhile."""
    compare = Checksums.compare

    def timed(self: Checksums, rows: np.ndarray, first: int, last: int) -> None:
        begin = time.perf_counter()
        compare(self, rows, first, last)
        seconds[0] += time.perf_counter() - begin

    Checksums.compare = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Checksums.compare = compare  # type: ignore[method-assign]


def _whole(rounds: Sequence[tuple[Sample, dict[str, float], float]], stage_sum_ms: float) -> Whole:
    stages = {name: 1e3 * median(clock[name] for _, clock, _ in rounds) for name in rounds[0][1]}
    return Whole(times=Times.of(Timing.of([sample for sample, *_ in rounds])), stage_sum_ms=stage_sum_ms,
                 clock_ms=stages, checking_ms=1e3 * median(checking for *_, checking in rounds),
                 content="ingest, features, an epoch on the initial patches, an evaluation, scoring, "
                         "selection, reveal")


def acquisition(ground: Ground, stages: list[Stage]) -> list[str]:
    """What scoring the whole pool and selecting costs here and in research code, in one sentence."""
    def of(name: str) -> tuple[Stage, Baseline] | None:
        found = next((one for one in stages if one.name == name and one.baselines), None)
        return (found, found.baselines[0]) if found else None

    scoring, place, seeding = of("scoring"), of("UMAP place"), of("seeding")
    if scoring is None or seeding is None:
        return []
    ours = theirs = 0.0
    for pair, factor in ((scoring, ground.pool / ground.n), (place, 1), (seeding, 1)):
        if pair is not None and pair[1].ratio is not None:
            each = factor * pair[0].times.median_ms
            ours, theirs = ours + each, theirs + each * pair[1].ratio[1]
    low, _, high = scoring[1].ratio or (0, 0, 0)
    return [f"Scoring and selecting in the whole pool: {ours / 1e3:,.1f} s, research code {theirs / 1e3:,.1f} s, "
            f"{theirs / ours:.1f} times as long (scoring alone {low:.1f} to {high:.1f} times)."]


def describe(ground: Ground) -> str:
    config, grid = ground.config, ground.experiment.grid
    frozen = "frozen" if ground.frozen else "finetuned"
    return (f"{config.data.dataset}: {ground.pool:,} images of {grid.height} × {grid.width}, {grid.rows} × {grid.cols} "
            f"patches each; {frozen} {config.model.backbone}; {config.query.strategy}")
