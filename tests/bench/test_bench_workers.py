"""The bench of sharded scoring: what is measured runs, what is simulated is labelled and adds up."""

import pytest
from tiny import tiny_config

from meal_gpu.bench.parts import workers
from meal_gpu.bench.show.page import page


def test_a_simulated_round_adds_up():
    """10,000 patches: the merge is checked against one process inside."""
    one, many = (workers._simulate(n, 10_000, 50, 1e-3, 2e-3, 10**6, 1000) for n in (1, 64))
    assert one.scoring == pytest.approx(10, rel=0.01)
    assert many.scoring == pytest.approx(10 / 64, rel=0.1)
    assert many.bytes == 64 * (10**6 + 1000)
    assert many.network == many.bytes / workers.BANDWIDTH
    assert many.scheduler == pytest.approx(0.128)
    assert many.overhead == many.network + many.scheduler + many.merging


def test_the_point_where_more_workers_stop_helping():
    rounds = [workers.Simulated(n, 10 / n, 0.1 * n, 0.01 * n, 0.001, n) for n in (1, 4, 16)]
    assert "from 16 workers on network, scheduler and merge (1.76 s)" in workers._crossing("here", rounds)
    assert "most of it is the network" in workers._crossing("here", rounds)
    assert "up to 4 workers scoring is what a round waits for" in workers._crossing("here", rounds[:2])


def test_it_runs(tmp_path):
    result = workers.run(tiny_config(tmp_path), [1], rounds=1, n_images=8, patches=5_000, simulated=(1, 8))
    assert [(one.name, one.items) for one in result.stages] == [("score, 1 worker", 48)]
    assert all(chart.title.startswith("Simulated") and chart.note.startswith("Simulated") for chart in result.charts)
    assert all(note.startswith("SIMULATED") for note in result.notes)
    assert [curve.name for curve in result.charts[0].curves] == ["round", "scoring", "network", "scheduler", "merge"]
    result.write(tmp_path / "result.json")
    assert type(result).read(tmp_path / "result.json") == result
    assert "Simulated: workers as fast as a core here" in page(result)
