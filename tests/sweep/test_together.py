"""Runs of one process that share their pool: they are the runs made alone, and share what they can."""

import io

import pytest
from rich.console import Console
from test_sweep import queries
from tiny import tiny_config

from meal_gpu.errors import InputError
from meal_gpu.launch import run
from meal_gpu.network.features import Features
from meal_gpu.records import read_rounds
from meal_gpu.report import load_sweep
from meal_gpu.sweep import together
from meal_gpu.sweep.runner import sweep
from meal_gpu.sweepfile import Point


@pytest.fixture
def points(tmp_path):
    return [Point(name, tiny_config(tmp_path, **{"query.strategy": name, "seeds": [0, 1]}))
            for name in ("random", "meal")]


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


def test_they_are_the_runs_made_alone(points, tmp_path, console, monkeypatch, one_thread):
    """Features of pool and validation once for both; called again, what is finished stays."""
    cached = []
    kept = Features._kept
    monkeypatch.setattr(Features, "_kept", lambda self, *given: cached.append(given[2]) or kept(self, *given))
    report = sweep(points, tmp_path / "out", console, workers=0)
    assert report.is_file()
    assert cached == ["features", "val features"]
    monkeypatch.setattr(together, "prepare", lambda *_: pytest.fail("all is finished"))
    sweep(points, tmp_path / "out", console, workers=0)
    assert [load.config.query.strategy for load in load_sweep(tmp_path / "out")] == ["random", "meal"]
    for point in points:
        alone = run(point.config, tmp_path / "alone" / point.name)
        assert queries(tmp_path / "out" / point.name) == queries(alone)
        assert len(queries(alone)) == 2


OTHERS = {
    "as the first": {},
    "other images": {"query.n_initial_images": 3},
    "everything": {"query.n_initial_images": 0, "query.rounds": 0},
    "begun otherwise": {"query.start": "coreset"},
    "scored otherwise": {"query.score": "margin", "query.strategy": "entropy"},
    "apart": {"query.min_distance": 0.6, "query.per_image": 1},
    "other training": {"train.flip": True, "train.batch_size": 3, "train.sample": "image"},
    "held out": {"query.strategy": "entropy_calibrated"},
}
"""Whatever runs of one process may differ in."""


def test_what_they_differ_in_is_their_own(tmp_path, console, caplog, one_thread):
    """Each is the run made alone, also where the first of them prepared for something else."""
    points = [Point(name.replace(" ", "_"), tiny_config(tmp_path, **{
        "query.strategy": "random", "query.rounds": 1, "train.epochs": 1, "train.final_epochs": 1, **others}))
        for name, others in OTHERS.items()]
    with caplog.at_level("INFO", "meal_gpu"):
        sweep(points, tmp_path / "out", console, workers=0)
    assert caplog.text.count("Training changes images") == 1
    for point in points:
        alone = run(point.config, tmp_path / "alone" / point.name)
        mine, its = ([{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes", "check")}
                      for record in read_rounds(directory / "seed-0")] for directory in (tmp_path / "out" / point.name,
                                                                                          alone))
        assert mine == its, point.name


def test_runs_of_another_pool_are_refused(points, tmp_path, console):
    other = points[1].config.revised("data", n_images=7)
    with pytest.raises(InputError, match=r"random and other differ in data.n_images: give each a worker"):
        sweep([points[0], Point("other", other)], tmp_path / "out", console, workers=0)
    assert not (tmp_path / "out").exists()

