"""Which runs are held against the paper's values, and what is said of those that differ."""


import pytest
from fake_run import html, write_run

from meal_gpu.config import Config
from meal_gpu.report import load_run
from meal_gpu.report.paper import reference

CAMVID = {"data": {"dataset": "camvid", "root": "x"}}
CITYSCAPES = {"data": {"dataset": "cityscapes", "root": "x", "image_size": [512, 1024]}, "query": {"rounds": 14}}


def config(base: dict, **changes: dict) -> Config:
    sections = {**base, **{key: {**base.get(key, {}), **value} for key, value in changes.items()}}
    return Config.load(sections)


@pytest.mark.parametrize(("base", "frozen", "strategy", "query", "miou", "supervised"), [
    (CAMVID, True, "random", {}, 0.509, 0.635),
    (CAMVID, True, "meal", {}, 0.558, 0.635),
    (CAMVID, True, "meal_ft", {}, 0.573, 0.635),
    (CAMVID, False, "entropy", {}, 0.528, 0.73),
    (CITYSCAPES, True, "meal", {}, 0.326, 0.497),
    (CITYSCAPES, False, "meal", {}, 0.402, 0.618),
    (CITYSCAPES, True, "meal_ft", {"n_initial_images": 20, "n_query": 25, "rounds": 6}, 0.313, 0.497),
    (CITYSCAPES, False, "random", {"n_initial_images": 20, "n_query": 25, "rounds": 6}, 0.328, 0.618),
    (CAMVID, True, "my_own", {}, None, 0.635),
    (CAMVID, False, "random", {"n_initial_images": 0, "rounds": 0}, 0.73, 0.73),
])
def test_table_1(base, frozen, strategy, query, miou, supervised):
    found = reference(config(base, model={"freeze_backbone": frozen}, query={"strategy": strategy, **query}))
    assert found is not None
    assert (found.miou, found.supervised) == (miou, supervised)


@pytest.mark.parametrize("changes", [
    {"query": {"n_query": 31}}, {"query": {"rounds": 7}}, {"query": {"n_initial_images": 3}},
    {"query": {"n_informative": 100}}, {"query": {"score": "margin"}}, {"data": {"grid": [2, 4]}},
    {"data": {"image_size": [180, 240]}}, {"model": {"backbone": "resnet50"}}, {"model": {"weights": "none"}},
    {"data": {"dataset": "demo"}},
])
def test_another_protocol_is_not_the_papers(changes):
    assert reference(config(CAMVID)) is not None
    assert reference(config(CAMVID, **changes)) is None


def test_settings_that_a_strategy_does_not_use_do_not_matter():
    assert reference(config(CAMVID, query={"strategy": "random", "n_informative": 50, "score": "margin"})) is not None


def test_training_that_differs_is_listed(tmp_path):
    assert reference(config(CAMVID)).departures == []  # type: ignore[union-attr]
    found = reference(config(CAMVID, train={"epochs": 3, "lr": 0.01}))
    assert found is not None
    assert found.departures == ["train.epochs 3 (paper: 25)", "train.lr 0.01 (paper: 0.001)"]
    path = write_run(tmp_path / "run", seeds=(0,), gallery=False, overrides={"train": {"epochs": 3}})
    assert "train.epochs 3 (paper: 25)" in html([load_run(path)], tmp_path / "r.html")


def test_page_shows_the_papers_value_only_where_it_belongs(tmp_path):
    paper = write_run(tmp_path / "a", seeds=(0,), gallery=False, embedding=False)
    other = write_run(tmp_path / "b", seeds=(0,), gallery=False, embedding=False, rounds=7)
    with_value, without = (html([load_run(p)], tmp_path / f"{p.name}.html") for p in (paper, other))
    assert "paper 0.558" in with_value
    assert "paper, fully supervised 0.635" in with_value
    assert "paper 0." not in without
    assert "fully supervised" not in without
