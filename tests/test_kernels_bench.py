"""The kernel benchmark: interleaving, its check against the reference, its table, its JSON."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from meal_gpu import cli
from meal_gpu.bench import kernels as bench
from meal_gpu.bench.machine import Roof
from meal_gpu.bench.measure import Timing, interleaved

CASE = bench.Case("tiny", (2, 5, 6, 8), (24, 32), (2, 2))
ROOF = Roof(threads=2, exps_per_second=1e9, bytes_per_second=1e10)


def few_alternatives(x: torch.Tensor, case: bench.Case) -> dict[str, Any]:
    """Without the compiler, which takes most of a minute."""
    eager = lambda: bench.full_resolution(bench.upsample(x, case.size), case.grid)  # noqa: E731
    stand_in = lambda: bench.logsumexp_form(bench.upsample(x, case.size), case.grid)  # noqa: E731
    ours = lambda: bench.patch_entropy(x, case.size, case.grid)  # noqa: E731
    return {bench.EAGER: eager, "compiled stand-in": stand_in, "wrong": lambda: 1.001 * eager(), bench.OURS: ours}


def test_interleaved_runs_everything_in_every_round() -> None:
    calls: list[str] = []
    timings = interleaved({n: lambda n=n: calls.append(n) for n in "abc"}, rounds=3, warmup=1)
    assert sorted(calls) == sorted("abc" * 4)
    assert calls[:3] == calls[3:6][::-1]
    assert all(len(t.seconds) == 3 for t in timings.values())


def test_ratio_is_per_round() -> None:
    """A machine twice as slow in one round does not change it."""
    fast, slow = Timing((1.0, 2.0, 1.0)), Timing((10.0, 20.0, 12.0))
    assert fast.ratio(slow) == 10
    assert fast.median == 1
    assert slow.best == 10


def test_roof_is_the_slower_of_the_two() -> None:
    assert ROOF.seconds(exps=10**9, bytes_moved=10**9) == 1
    assert ROOF.seconds(exps=10**8, bytes_moved=10**10) == 1


def test_case_table_and_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "alternatives", few_alternatives)
    monkeypatch.setattr(bench, "measure_roof", lambda: ROOF)
    monkeypatch.setattr(bench, "run", partial(bench.run, cases=[CASE]))
    arguments = ["bench", "kernels", "--rounds", "2", "--json", str(tmp_path / "b.json")]
    monkeypatch.setattr("sys.argv", ["meal-gpu", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    result = json.loads((tmp_path / "b.json").read_text())
    (case,) = result["cases"]
    assert set(case["alternatives"]) == {bench.EAGER, "compiled stand-in", bench.OURS}
    assert case["left_out"]["wrong"] == pytest.approx(1e-3, rel=0.01)  # too inexact to be timed
    assert case["alternatives"][bench.OURS]["relative_error"] < 1e-6
    assert case["cost"]["exps"] == 2 * 24 * 32 * 4
    assert case["roof_ms"] == pytest.approx(1e3 * 2 * 24 * 32 * 4 / 1e9)
    text = io.StringIO()
    bench.show(result, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("rel. error" in line for line in lines)
    assert any("times faster than the eager chain" in line for line in lines)


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: torch.Tensor, case: bench.Case) -> dict[str, Any]:
        return few_alternatives(x, case) | {bench.OURS: lambda: torch.ones(2, 2, 2)}

    monkeypatch.setattr(bench, "alternatives", wrong)
    with pytest.raises(RuntimeError, match="exceeds"):
        bench.run_case(CASE, ROOF, rounds=1)


def test_the_formulas_agree() -> None:
    """Both baselines are the reference's entropy."""
    x = CASE.logits("cpu")
    expected = bench.reference.patch_entropy(x, CASE.size, CASE.grid)[0].float()
    for formula in (bench.full_resolution, bench.logsumexp_form):
        torch.testing.assert_close(formula(bench.upsample(x, CASE.size), CASE.grid), expected, rtol=1e-5, atol=0)
