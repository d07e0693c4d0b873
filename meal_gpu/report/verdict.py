"""Which of several strategies won, by how much, and how much that says: one sentence."""

from collections.abc import Sequence

from .runs import Run
from .summary import labels, spread
from .words import setting


def verdict(runs: Sequence[Run]) -> str | None:
    """The best of finished runs that differ in their strategies alone, against the next; None where there are no two.

    By the mIoU of the last epoch of the last round, which nobody chose, and on the seeds that both have.
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
    gap, patches = spread(ahead), racing[0][0].seeds[0].rounds[-1].n_labelled
    assert gap is not None
    text = (f"{first} won against {second}: {sum(a[-1] for a in best) / len(seeds):.3f} to "
            f"{sum(b[-1] for b in other) / len(seeds):.3f} mIoU, {gap.mean:+.3f}, with {patches:,} labelled patches "
            f"(last epoch, {over}).")
    if gap.mean == 0:
        text = f"{first} and {second} end with the same mIoU, {best[0][-1]:.3f}, with {patches:,} labelled patches."
    if rounds:
        mean = sum(rounds) / len(rounds)
        text += (f" On average over the rounds of queries {first} was {abs(mean):.3f} "
                 f"{'ahead' if mean >= 0 else 'behind'}.")
    if gap.std is None:
        return f"{text} One run each: a difference like this may be noise."
    each, known = ", ".join(f"{value:+.3f}" for value in ahead), gap.std / len(seeds) ** 0.5
    noise = ", so this may be noise" if abs(gap.mean) < 2 * known else ""
    return f"{text} By seed: {each}. The mean of {len(seeds)} seeds is known to about ± {known:.3f}{noise}."


def _curve(run: Run, seed: int) -> list[float | None]:
    return [record.last.miou for record in next(one for one in run.seeds if one.seed == seed).rounds]
