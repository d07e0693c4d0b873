"""Which of several strategies won, by how much, and how much that says: one sentence."""

from collections.abc import Sequence

from .compare import paired
from .runs import Run
from .summary import labels
from .words import setting


def verdict(runs: Sequence[Run]) -> str | None:
    """The best of finished runs that differ in their strategies alone, against the next; None where there are no two.

    By the mIoU of the last epoch of the last round, which nobody chose, and on the seeds that both have. Nobody has won
    where the interval of the difference, by Student's t over seeds, holds zero.
    """
    racing = [(run, name) for run, name in zip(runs, labels(runs), strict=True)
              if run.finished and not run.supervised and run.dataset.n_val_images]
    if len(racing) < 2 or len({setting(run) for run, _ in racing}) > 1:
        return None
    seeds = sorted(set.intersection(*({seed.seed for seed in run.seeds} for run, _ in racing)))
    scored = [(name, [_curve(run, seed) for seed in seeds]) for run, name in racing]
    if not seeds or any(value is None for _, curves in scored for curve in curves for value in curve):
        return None
    ranked = sorted(((name, [[float(value or 0) for value in curve] for curve in curves]) for name, curves in scored),
                    key=lambda one: -sum(curve[-1] for curve in one[1]))
    (first, best), (second, other) = ranked[:2]
    ahead = [a[-1] - b[-1] for a, b in zip(best, other, strict=True)]
    rounds = [sum(a[1:]) / len(a[1:]) - sum(b[1:]) / len(b[1:]) for a, b in zip(best, other, strict=True) if a[1:]]
    over = f"the mean of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    gap, patches = paired([a[-1] for a in best], [b[-1] for b in other]), racing[0][0].seeds[0].rounds[-1].n_labelled
    apart = gap.low is not None and gap.low > 0
    how = "won against" if apart else "ended ahead of"
    text = (f"{first} {how} {second}: {sum(a[-1] for a in best) / len(seeds):.3f} to "
            f"{sum(b[-1] for b in other) / len(seeds):.3f} mIoU, {gap.mean:+.3f}, with {patches:,} labelled patches "
            f"(last epoch, {over}).")
    if gap.mean == 0:
        text = f"{first} and {second} end with the same mIoU, {best[0][-1]:.3f}, with {patches:,} labelled patches."
    if rounds:
        mean = sum(rounds) / len(rounds)
        text += (f" On average over the rounds of queries {first} was {abs(mean):.3f} "
                 f"{'ahead' if mean >= 0 else 'behind'}.")
    if gap.low is None or gap.high is None:
        return f"{text} One run each: a difference like this may be noise."
    each = ", ".join(f"{value:+.3f}" for value in ahead)
    holds = "" if apart else ", which holds zero: so few seeds do not tell them apart"
    return f"{text} By seed: {each}. 95 % interval of the difference: {gap.low:+.3f} to {gap.high:+.3f}{holds}."


def _curve(run: Run, seed: int) -> list[float | None]:
    return [record.last.miou for record in next(one for one in run.seeds if one.seed == seed).rounds]
