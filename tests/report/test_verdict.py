"""Which strategy won: the numbers against a computation of their own, and when there is nothing to say."""

import statistics

import pytest
from fake_run import html, records, small, words

from meal_gpu.report import load_run
from meal_gpu.report.verdict import verdict


def two(tmp_path, seeds=(0, 1), **changes):
    return [load_run(small(tmp_path / name, name, seeds=seeds, **changes)) for name in ("random", "meal")]


def test_it_is_said_by_how_much_and_over_how_many_seeds(tmp_path):
    random, meal = runs = two(tmp_path)
    ends = [[records(run.path, seed)[-1]["last"]["miou"] for seed in (0, 1)] for run in (random, meal)]
    text = verdict(runs)
    assert text is not None
    gap = statistics.mean(ends[1]) - statistics.mean(ends[0])
    by_seed = [(a - b) * (1 if gap > 0 else -1) for b, a in zip(*ends, strict=True)]
    half = 12.706 * statistics.stdev(by_seed) / 2**0.5  # Student's t, 97.5 %, one degree of freedom
    assert half > abs(gap)
    assert text.startswith("MEAL ended ahead of Random: " if gap > 0 else "Random ended ahead of MEAL: ")
    assert f"{abs(gap):+.3f}" in text
    assert "the mean of 2 seeds" in text
    assert ", ".join(f"{value:+.3f}" for value in by_seed) in text
    assert (f"95 % interval of the difference: {abs(gap) - half:+.3f} to {abs(gap) + half:+.3f}, which holds zero: so "
            "few seeds do not tell them apart.") in text
    assert verdict(runs[::-1]) == text
    assert text in words(html(runs, tmp_path / "r.html"))


def test_whichever_won_is_named(tmp_path):
    """The directory says `random`, and its curve lies above."""
    low = load_run(small(tmp_path / "low", "meal", seeds=(0,)))
    for record in (high := load_run(small(tmp_path / "high", "random", seeds=(0,)))).seeds[0].rounds:
        record.last.miou = 0.9
    text = verdict([low, high])
    assert text is not None
    assert text.startswith("Random ended ahead of MEAL: 0.900 to ")
    assert "may be noise" in text


def test_who_is_ahead_by_the_same_in_every_seed_has_won(tmp_path):
    runs = two(tmp_path, seeds=(0, 1, 2))
    for number, run in enumerate(runs):
        for i, seed in enumerate(run.seeds):
            for record in seed.rounds:
                record.last.miou = 0.5 + 0.1 * number + 0.01 * i
    text = verdict(runs)
    assert text is not None
    assert text.startswith("MEAL won against Random: 0.610 to 0.510 mIoU, +0.100")
    assert "holds zero" not in text


@pytest.mark.parametrize("why", ["one run", "unfinished", "another budget", "no validation"])
def test_nothing_is_said_where_nothing_can_be(tmp_path, why):
    runs = two(tmp_path)
    if why == "one run":
        runs = runs[:1]
    elif why == "unfinished":
        runs[1] = load_run(small(tmp_path / "u", "meal", seeds=(0, 1), done={1: 2}))
    elif why == "another budget":
        runs[1] = load_run(small(tmp_path / "u", "meal", seeds=(0, 1), rounds=1))
    else:
        runs = two(tmp_path / "none", n_val_images=0)
    assert verdict(runs) is None
