"""Comparisons against numbers that are known: textbooks', and runs whose outcome was written down beforehand."""

import dataclasses

import numpy as np
import pytest
from fake_run import html, small, words
from scipy import stats

from meal_gpu.report import load_run
from meal_gpu.report.compare import (
    Curves,
    against,
    aubc,
    ceiling,
    comparable,
    detectable,
    holm,
    mix,
    overlaps,
    paired,
    penalties,
    reached,
)


def test_the_area_under_a_constant_is_the_constant_and_budgets_weigh():
    assert aubc([32, 64, 288], [0.4, 0.4, 0.4]) == pytest.approx(0.4)
    assert aubc([0, 1, 3], [0.0, 1.0, 1.0]) == pytest.approx((0.5 + 2) / 3)


def test_pairs_are_tested_as_scipy_tests_them():
    one, other = [0.52, 0.55, 0.50, 0.58], [0.50, 0.51, 0.51, 0.55]
    found = paired(one, other)
    expected = stats.ttest_rel(one, other)
    assert found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    alone = paired([0.5], [0.4])
    assert (alone.mean, alone.low, alone.p, alone.told_apart) == (pytest.approx(0.1), None, None, False)


@pytest.mark.parametrize(("n", "effect"), [(3, 3.3), (4, 2.1), (5, 1.7), (8, 1.2), (10, 1.0), (20, 0.66)])
def test_so_many_seeds_see_so_much(n, effect):
    assert detectable(n) == pytest.approx(effect, abs=0.06)


def test_a_test_of_that_size_finds_it_four_times_in_five():
    rng = np.random.default_rng(0)
    found = [stats.ttest_1samp(rng.normal(detectable(5), 1, 5), 0).pvalue < 0.05 for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_holms_adjustment():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_labels_are_read_off_between_budgets():
    assert reached([32, 64, 96], [0.2, 0.4, 0.5], 0.3) == pytest.approx(48)
    assert reached([32, 64, 96], [0.2, 0.4, 0.5], 0.1) == 32
    assert reached([32, 64, 96], [0.2, 0.4, 0.5], 0.6) is None


def made(tmp_path, seeds=(0, 1, 2)):
    runs = [load_run(small(tmp_path / name, name, seeds=seeds)) for name in ("random", "entropy", "meal")]
    return comparable(runs)[0]


def of(curve: Curves, values: np.ndarray) -> Curves:
    return dataclasses.replace(curve, values=values)


def test_a_clear_difference_is_called_one_and_noise_is_not(tmp_path):
    rng = np.random.default_rng(0)
    base = 0.4 + 0.01 * rng.normal(size=(3, 3))
    random, entropy, meal = made(tmp_path)
    curves = [of(random, base), of(entropy, base + np.array([[0.01], [-0.012], [0.003]])),
              of(meal, base + 0.05 + 0.0005 * rng.normal(size=(3, 3)))]
    (one, base_, noise), (two, _, clear) = against(curves)
    assert (one.strategy, two.strategy, base_.strategy) == ("entropy", "meal", "random")
    assert not noise.told_apart
    assert noise.low < 0 < noise.high
    assert clear.told_apart
    assert clear.adjusted == pytest.approx(2 * clear.p)
    lost = penalties(curves)
    assert lost[0, 2] == 1
    assert lost[2].sum() == 0
    assert np.diag(lost).sum() == 0


def test_under_the_null_a_penalty_is_found_one_time_in_forty(tmp_path):
    random, entropy, _ = made(tmp_path)
    rng = np.random.default_rng(1)
    cells = [penalties([of(random, rng.normal(size=(3, 9))), of(entropy, rng.normal(size=(3, 9)))])[0, 1]
             for _ in range(40)]
    assert np.mean(cells) == pytest.approx(0.025, abs=0.02)


def test_only_runs_of_one_setting_and_their_common_seeds_are_compared(tmp_path):
    runs = [load_run(small(tmp_path / "a", "random", seeds=(0, 1, 2))),
            load_run(small(tmp_path / "b", "meal", seeds=(2, 1))),
            load_run(small(tmp_path / "c", "entropy", seeds=(1, 2), n_query=3))]
    curves, seeds = comparable(runs)
    assert [one.strategy for one in curves] == ["random", "meal"]
    assert seeds == [1, 2]
    assert curves[0].values.shape == (2, 3)
    assert comparable(runs[:1]) == ([], [])


def test_what_was_bought_overlaps_and_is_of_classes(tmp_path):
    random, entropy, _ = made(tmp_path, seeds=(0, 1))
    expected = []
    for seed in (0, 1):
        bought = [{patch.id for record in one.run.seeds[seed].rounds[1:] for patch in record.queried}
                  for one in (random, entropy)]
        expected.append(len(bought[0] & bought[1]) / len(bought[0] | bought[1]))
    found = overlaps([random, entropy], [0, 1], True)
    assert found[0, 1] == found[1, 0] == pytest.approx(np.mean(expected))
    assert found[0, 0] == 1
    assert mix(random, [0, 1]) is None  # these runs did not count pixels
    for seed in random.run.seeds:
        for record in seed.rounds:
            record.pixels = {"sky": 30, "car": 10} if record.round else {"road": 99}
    assert mix(random, [0, 1])["car"] == pytest.approx(0.25)


def test_the_page_says_what_cannot_be_told_apart(tmp_path):
    runs = [load_run(small(tmp_path / name, name)) for name in ("random", "meal")]
    runs.append(load_run(small(tmp_path / "all", "random", seeds=(0,), rounds=0,
                               overrides={"query": {"n_initial_images": 0, "n_informative": 20, "rounds": 0}})))
    text = words(html(runs, tmp_path / "r.html"))
    whole = ceiling(runs, runs[0])
    assert f"Supervised: {whole:.3f}." in text
    assert "MEAL − Random" in text
    assert "Nothing is called better whose interval holds 0" in text
    assert "labels to 90%" in text
    one = [load_run(small(tmp_path / f"one-{name}", name, seeds=(0,))) for name in ("random", "meal")]
    text = words(html(one, tmp_path / "s.html"))
    assert "With one seed there is no interval" in text
    assert "not told apart" in text
