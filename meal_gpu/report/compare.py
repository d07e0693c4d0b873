"""Strategies compared over seeds: one number per run, paired differences with intervals, and what could be seen at all.

mIoU is that of the last epoch, which nobody chose. Runs are paired by seed: the same start, the same weights at first
and the same order of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import MACHINE_KEYS
from .runs import Run
from .summary import labels

BASELINES = ("random", "random_spread")
LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Curves:
    """A strategy's mIoU over budgets: ``values`` float ``[seeds, budgets]``."""

    name: str
    strategy: str
    run: Run
    values: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """AUBC of each seed."""
        return np.array([aubc(self.budgets, row) for row in self.values])

    @property
    def budgets(self) -> list[int]:
        return budgets_of(self.run)


@dataclass(frozen=True)
class Difference:
    """Of paired numbers: mean, its 95 % interval and the chance of such a mean where there is none; None for one seed.
    ``adjusted`` is the chance by Holm, over all that was compared."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    visible: float | None
    """The smallest true difference that so many seeds, as far apart as these, find four times in five."""
    adjusted: float | None = None

    @property
    def told_apart(self) -> bool:
        """Whether anything may be called better: the interval does not hold 0, and the chance stays small by Holm."""
        return (self.low is not None and self.high is not None and self.adjusted is not None
                and (self.low > 0 or self.high < 0) and self.adjusted < LEVEL)


def budgets_of(run: Run) -> list[int]:
    return [record.n_labelled for record in run.seeds[0].rounds]


def comparable(runs: Sequence[Run]) -> tuple[list[Curves], list[int]]:
    """Runs of one setting that have finished, on the seeds that all of them have, and these; empty for fewer than two.

    The setting that most of the runs share, where there are several.
    """
    groups: dict[str, list[tuple[Run, str]]] = {}
    for run, name in zip(runs, labels(runs), strict=True):
        if run.finished and not run.supervised and run.dataset.n_val_images and run.rounds_asked > 1:
            groups.setdefault(_setting(run), []).append((run, name))
    if not groups:
        return [], []
    group = max(groups.values(), key=len)
    seeds = sorted(set.intersection(*({seed.seed for seed in run.seeds} for run, _ in group)))
    if len(group) < 2 or not seeds:
        return [], []
    found = []
    for run, name in group:
        rows = [[record.last.miou for record in seed.rounds] for seed in run.seeds if seed.seed in seeds]
        if any(value is None for row in rows for value in row):
            return [], []
        found.append(Curves(name, run.config.query.strategy, run, np.array(rows, float)))
    return found, seeds


def _setting(run: Run) -> str:
    """All but the strategy and what belongs to it: budgets, data, network and training."""
    own = {*MACHINE_KEYS, "query.strategy", "query.score", "query.selector", "query.n_informative",
           "query.min_distance", "query.per_image", "query.class_quota", "query.power", "query.per_cost",
           "query.dropout", "query.samples", "query.hold_out", "query.kmeans", "seeds"}
    keys = {key: value for key, value in run.config.flat().items()
            if key not in own and key.partition(".")[0] != "umap"}
    return repr((sorted(keys.items(), key=lambda item: item[0]), run.dataset.model_dump(), budgets_of(run)))


def aubc(budgets: Sequence[float], values: Sequence[float] | np.ndarray) -> float:
    """Area under a curve over budgets, as a mean: that of a constant is the constant."""
    x, y = np.asarray(budgets, float), np.asarray(values, float)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def paired(values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> Difference:
    """values - others, by Student's t over pairs."""
    from scipy import stats

    apart = np.asarray(values, float) - np.asarray(others, float)
    n, mean = len(apart), float(apart.mean())
    if n < 2:
        return Difference(mean, None, None, None, None)
    error = float(apart.std(ddof=1)) / n**0.5
    if error == 0:
        return Difference(mean, mean, mean, float(mean == 0), 0.0)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Difference(mean, mean - half, mean + half, p, detectable(n) * error * n**0.5)


def detectable(n: int) -> float:
    """The difference that a paired t-test of n pairs finds with `POWER`, in deviations of the pairs' differences."""
    from scipy import optimize, stats

    critical = stats.t.ppf(1 - LEVEL / 2, n - 1)

    def missed(effect: float) -> float:
        return float(stats.nct.cdf(critical, n - 1, effect * n**0.5)) - (1 - POWER)

    return float(optimize.brentq(missed, 0.01, 60))


def holm(chances: Sequence[float]) -> list[float]:
    """Chances adjusted for how many there are (Holm, 1979), in their order."""
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    adjusted, highest = [0.0] * len(chances), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[i]))
        adjusted[i] = highest
    return adjusted


def against(curves: Sequence[Curves]) -> list[tuple[Curves, Curves, Difference]]:
    """Every strategy against each baseline that is there, by AUBC; all of them are what was compared."""
    found = [(one, base, paired(one.scores, base.scores)) for base in curves if base.strategy in BASELINES
             for one in curves if one is not base and not (one.strategy in BASELINES and base.strategy != "random")]
    known = [i for i, (_, _, difference) in enumerate(found) if difference.p is not None]
    adjusted = dict(zip(known, holm([found[i][2].p or 0.0 for i in known]), strict=True))
    return [(one, base, Difference(d.mean, d.low, d.high, d.p, d.visible, adjusted.get(i)))
            for i, (one, base, d) in enumerate(found)]


def penalties(curves: Sequence[Curves]) -> np.ndarray:
    """``[i, j]``: at which part of the budgets i is beaten by j, by a paired t-test at 5 % each, not adjusted (Ash et
    al., 2020). The start, which all share, is left out.

    Where nothing differs a cell is 0.025 on average.
    """
    n = len(curves)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                tests = [paired(curves[j].values[:, k], curves[i].values[:, k])
                         for k in range(1, curves[i].values.shape[1])]
                found[i, j] = np.mean([d.p is not None and d.p < LEVEL and d.mean > 0 for d in tests])
    return found


def reached(budgets: Sequence[float], values: Sequence[float] | np.ndarray, target: float) -> float | None:
    """Labels at which a curve first reaches a value, between budgets linearly; None where it does not."""
    for i, value in enumerate(values):
        if value >= target:
            if i == 0:
                return float(budgets[0])
            before = float(values[i - 1])
            return float(budgets[i - 1] + (budgets[i] - budgets[i - 1]) * (target - before) / (value - before))
    return None


def ceiling(runs: Sequence[Run], like: Run) -> float | None:
    """Mean mIoU of a supervised run of the same data set and backbone, its last epoch; None without one."""
    for run in runs:
        same = run.backbone == like.backbone and run.dataset == like.dataset and run.finished
        values = [seed.rounds[-1].last.miou for seed in run.seeds]
        if run.supervised and same and all(value is not None for value in values):
            return float(np.mean([value for value in values if value is not None]))
    return None


def overlaps(curves: Sequence[Curves], seeds: Sequence[int], whole: bool) -> np.ndarray:
    """Jaccard index of what two strategies bought, mean over seeds: of the first query, which all made with equal
    networks, or of the ``whole`` run; the start is left out."""
    n, found = len(curves), np.zeros((len(curves), len(curves)))
    for seed in seeds:
        bought = []
        for one in curves:
            rounds = next(other for other in one.run.seeds if other.seed == seed).rounds[1 : None if whole else 2]
            bought.append({patch.id for record in rounds for patch in record.queried})
        found += [[len(bought[i] & bought[j]) / max(1, len(bought[i] | bought[j])) for j in range(n)] for i in range(n)]
    return found / len(seeds)


def mix(one: Curves, seeds: Sequence[int]) -> dict[str, float] | None:
    """Which part of the labelled pixels that were bought (not of the start) is of each class, mean over seeds; None for
    runs that did not count them."""
    names, total = one.run.dataset.class_names, np.zeros(len(one.run.dataset.class_names))
    for seed in one.run.seeds:
        if seed.seed not in seeds:
            continue
        counts = [record.pixels for record in seed.rounds[1:]]
        if any(count is None for count in counts):
            return None
        pixels = np.array([sum((count or {}).get(name, 0) for count in counts) for name in names], float)
        total += pixels / max(1.0, pixels.sum())
    return dict(zip(names, (total / len(seeds)).tolist(), strict=True))
