"""Advice about going on: against curves whose gain is known."""

import numpy as np
import pytest
from fake_run import records, small

from meal_gpu.report import load_run
from meal_gpu.report.stopping import FEWEST, Signs, next_gain

X = np.arange(32, 32 + 9 * 32, 32).astype(float)


def curve(x: np.ndarray, rate: float = 0.01) -> np.ndarray:
    return 0.5 - 0.3 * np.exp(-rate * x)


@pytest.mark.parametrize("rate", [0.004, 0.01, 0.03])
def test_the_gain_of_a_curve_without_noise(rate):
    gain = next_gain(X, curve(X, rate), 32)
    assert gain is not None
    true = curve(X[-1:] + 32, rate) - curve(X[-1:], rate)
    assert gain.expected == pytest.approx(float(true[0]), rel=0.1, abs=1e-4)
    assert gain.low <= gain.expected <= gain.high
    assert gain.scatter < 1e-3


def test_the_band_holds_what_it_says():
    """Of 200 noisy curves the true gain lies in the band of about nine in ten."""
    true, draw = float(curve(X[-1] + 32) - curve(X[-1])), np.random.default_rng(1)
    held, widths = 0, []
    for _ in range(200):
        gain = next_gain(X, curve(X) + draw.normal(0, 0.01, len(X)), 32)
        assert gain is not None
        held += gain.low <= true <= gain.high
        widths.append(gain.high - gain.low)
    assert held > 150
    assert np.mean(widths) < 0.05


def test_noise_widens_the_band():
    draw = np.random.default_rng(0)
    small_, large = (next_gain(X, curve(X) + draw.normal(0, s, len(X)), 32) for s in (0.001, 0.02))
    assert small_ is not None
    assert large is not None
    assert small_.high - small_.low < large.high - large.low


def test_words():
    flat = next_gain(X, 0.4 + 1e-4 * np.sin(X), 32)
    rising = next_gain(X, 0.2 + 0.001 * X, 32)
    assert flat is not None
    assert rising is not None
    assert "Little is left to gain" in flat.words
    assert "It still rises: go on" in rising.words


def test_few_rounds_give_no_curve(tmp_path):
    assert next_gain(X[: FEWEST - 1], curve(X[: FEWEST - 1]), 32) is None
    run = load_run(small(tmp_path / "few", seeds=(0,)))
    advice = " ".join(Signs(run, run.seeds[0]).advice())
    assert "By the curve nothing yet: it takes 4 rounds with an mIoU, and there are 3" in advice
    assert "This is advice from few numbers" in advice
    run = load_run(small(tmp_path / "none", seeds=(0,), n_val_images=0))
    assert "there are no validation images" in " ".join(Signs(run, run.seeds[0]).advice())


def test_what_is_asked_for_and_what_was_right_are_those_of_the_files(tmp_path):
    path = small(tmp_path / "run", seeds=(0,), rounds=5)
    run = load_run(path)
    signs = Signs(run, run.seeds[0])
    means = [np.mean([patch["score"] for patch in one["next_query"]]) for one in records(path, 0)[:-1]]
    np.testing.assert_allclose(signs.uncertain, means)
    with np.load(path / "seed-0" / "gallery" / "round-03.npz") as arrays:
        said = arrays["truth"] != 255
        assert signs.right[3] == pytest.approx((arrays["truth"] == arrays["prediction"])[said].mean())
    assert sorted(signs.right) == [1, 2, 3, 4, 5]
    assert any("right before" in line for line in signs.advice())
