"""The kernel benchmark: its check against the reference, what it reports, its command."""

import sys
from pathlib import Path

import pytest
import torch

from meal_gpu import cli
from meal_gpu.bench.baselines.confusion import chain
from meal_gpu.bench.parts import counting
from meal_gpu.bench.parts import kernels as bench
from meal_gpu.bench.result import Result, WrongResultError
from meal_gpu.bench.timing.measure import Calibration, Effort
from meal_gpu.kernels import confusion_counts
from meal_gpu.planning.roofline import Roofs

CPU = torch.device("cpu")
CASE = bench.Case("tiny", (2, 5, 6, 8), (24, 32), (2, 2))
ROOFS = Roofs(2, "float32", bytes=1e10, exps=1e9)
SHORT = Effort(0.0, 2, 2, 0.0)
COUNTED = counting.Counting("count", (2, 5, 6, 8), (24, 32))


def known() -> int:
    """Pixels of its truth that count."""
    return int((COUNTED.given(CPU)[1] < 5).sum())


def few_ways_to_count(case: counting.Counting) -> dict[str, counting.Alternative]:
    def one_elsewhere(x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        counts = confusion_counts(x, truth, case.size)
        place = counts.diag().argmax()
        counts[place, place] -= 1
        counts[place, (place + 1) % 5] += 1
        return counts

    return {"torch chain": lambda x, truth: chain(x, truth, case.size), "wrong": one_elsewhere,
            counting.OURS: lambda x, truth: confusion_counts(x, truth, case.size)}


def few_alternatives(case: bench.Case) -> dict[str, bench.Alternative]:
    """Without the compiler, which takes most of a minute."""
    eager = lambda x: bench.full_resolution(bench.upsample(x, case.size), case.grid)  # noqa: E731
    stand_in = lambda x: bench.logsumexp_form(bench.upsample(x, case.size), case.grid)  # noqa: E731
    ours = lambda x: bench.patch_entropy(x, case.size, case.grid)  # noqa: E731
    return {bench.EAGER: eager, "compiled stand-in": stand_in, "wrong": lambda x: 1.001 * eager(x), bench.OURS: ours}


def test_what_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "alternatives", few_alternatives)
    monkeypatch.setattr(bench, "measure_roofs", lambda device, dtype: ROOFS)
    monkeypatch.setattr(bench, "CASES", (CASE,))
    monkeypatch.setattr(counting, "CASES", (COUNTED,))
    monkeypatch.setattr(counting, "alternatives", few_ways_to_count)
    file = tmp_path / "b.json"
    monkeypatch.setattr(sys, "argv", ["meal-gpu", "bench", "kernels", "--seconds", "0", "--json", str(file),
                                      "--out", str(tmp_path / "b.html")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    stage, counted = Result.read(file).stages
    assert [other.name for other in stage.baselines] == [bench.EAGER, "compiled stand-in", "wrong"]
    wrong = stage.baselines[2]
    assert wrong.times is None  # too inexact to be timed
    assert wrong.error == pytest.approx(1e-3, rel=0.01)
    assert stage.work.exps == 2 * 24 * 32 * 4
    assert stage.roof_ms == pytest.approx(1e3 * 2 * 24 * 32 * 4 / 1e9)
    assert stage.bound == "exp"
    assert stage.baselines[0].ratio is not None
    assert (tmp_path / "b.html").is_file()
    assert "counts exactly" in counted.note
    assert [(other.name, other.error, other.times is None) for other in counted.baselines] == [
        ("torch chain", 0.0, False), ("wrong", pytest.approx(1 / known()), True)]
    assert counted.work.bytes == 4 * 2 * 5 * 6 * 8 + 2 * 24 * 32 + 8 * 25
    printed, told = capsys.readouterr()
    assert max(map(len, printed.splitlines())) <= 100
    assert "too inexact" in printed
    assert [text.partition(":")[0] for text in told.splitlines()] == ["tiny", "count"]  # as they are measured
    assert "of its exp roof" in told


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: bench.Case) -> dict[str, bench.Alternative]:
        return few_alternatives(case) | {bench.OURS: lambda x: torch.ones(2, 2, 2)}

    monkeypatch.setattr(bench, "alternatives", wrong)
    with pytest.raises(WrongResultError, match="relative error"):
        bench.run_case(CASE, ROOFS, SHORT, CPU, Calibration(CPU))


def test_wrong_counts_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single pixel."""
    ways = few_ways_to_count(COUNTED)
    monkeypatch.setattr(counting, "alternatives", lambda case: {**ways, counting.OURS: ways["wrong"]})
    with pytest.raises(WrongResultError, match=r"counts .* of the pixels elsewhere than the torch chain, more than 0"):
        counting.run_case(COUNTED, ROOFS, SHORT, CPU, Calibration(CPU))


def test_the_chain_counts() -> None:
    """By a loop over the pixels; a tenth of the truth is void."""
    x, truth = COUNTED.given(CPU)
    assert 0 < known() < truth.numel()
    predicted = bench.upsample(x, COUNTED.size).argmax(1).flatten().tolist()
    expected = torch.zeros(5, 5, dtype=torch.int64)
    for is_, said in zip(truth.flatten().tolist(), predicted, strict=True):
        if is_ != counting.VOID:
            expected[is_, said] += 1
    assert torch.equal(chain(x, truth, COUNTED.size), expected)


def test_the_formulas_agree() -> None:
    """Both baselines are the reference's entropy."""
    x = CASE.logits("cpu")
    expected = bench.reference.patch_entropy(x, CASE.size, CASE.grid)[0].float()
    for formula in (bench.full_resolution, bench.logsumexp_form):
        torch.testing.assert_close(formula(bench.upsample(x, CASE.size), CASE.grid), expected, rtol=1e-5, atol=0)
