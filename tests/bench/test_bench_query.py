"""`bench query` on pools so small that they take seconds: what is compared, and that memory does not grow."""

import pytest
import torch

from meal_gpu.bench.baselines.entropy import plain_loop
from meal_gpu.bench.parts import asking
from meal_gpu.bench.result import Result, WrongResultError
from meal_gpu.bench.show.table import advice
from meal_gpu.bench.timing.measure import Calibration, Effort
from meal_gpu.planning.roofline import Roofs

CPU = torch.device("cpu")
ROOFS = Roofs(2, "float32", bytes=1e10, exps=1e9)
CASE = asking.Case(4, False, 4, 2, (24, 32), 5, (2, 2))
SHORT = Effort(0.0, 2, 2, 0.0)


def test_what_is_reported_and_that_memory_stays(monkeypatch, tmp_path):
    """150 more images of 0.13 MB, each pool in a process of its own."""
    monkeypatch.setattr(asking, "measure_roofs", lambda device, dtype: ROOFS)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    result = asking.run(SHORT, [CASE], (50, 200), (180, 240))
    scores, *calls = result.stages
    assert scores.items == 16
    assert [other.name for other in scores.baselines] == ["plain loop", "plain loop, batches"]
    assert all(other.ratio is not None and other.error <= asking.MAX_ERROR for other in scores.baselines)
    few, many = (one.peak.host_added_bytes for one in calls)
    assert many - few < 8e6  # 19 MB, if the pool stayed in memory
    result.write(tmp_path / "q.json")
    assert Result.read(tmp_path / "q.json").stages == result.stages
    assert "the network" in advice(result)


def test_a_wrong_score_is_not_timed(monkeypatch):
    monkeypatch.setattr(asking, "plain_loop", lambda *given: 1.001 * plain_loop(*given))
    with pytest.raises(WrongResultError, match="scores, stride 4: relative errors"):
        asking.run_case(CASE, ROOFS, SHORT, CPU, Calibration(CPU))
