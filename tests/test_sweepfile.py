"""Sweep files: the points that they span, their names, and what is refused before anything runs."""

import pytest
import yaml
from tiny import tiny_config

from meal_gpu.config import Config
from meal_gpu.configfile import shipped
from meal_gpu.errors import InputError
from meal_gpu.sweepfile import FILE, Point, dump_points, load_points, read_points

NETWORKS = [{"name": "frozen", "set": {"model.freeze_backbone": True}},
            {"name": "finetuned", "set": {"model.freeze_backbone": False, "train.lr": 0.0005}}]


@pytest.fixture
def write(tmp_path):
    """``write(axes=..., ...)`` -> a sweep file beside the tiny config ``tiny.yaml``."""
    (tmp_path / "tiny.yaml").write_text(tiny_config(tmp_path).dump())

    def make(**values):
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({"base": "tiny.yaml", **values}, sort_keys=False))
        return file

    return make


def test_every_combination_is_a_point(write):
    points = load_points(write(axes={"network": NETWORKS, "query.strategy": ["random", "meal"], "seeds": [3, 4, 5]}))
    assert [point.name for point in points][:4] == [
        "frozen-random-seed-3", "frozen-random-seed-4", "frozen-random-seed-5", "frozen-meal-seed-3"]
    assert len(points) == len({point.config.dump() for point in points}) == 12
    last = points[-1].config
    assert points[-1].name == "finetuned-meal-seed-5"
    assert (last.seeds, last.query.strategy, last.model.freeze_backbone, last.train.lr) == ([5], "meal", False, 0.0005)
    assert last.query.n_query == 4, "what no axis names comes from the base"


def test_values_that_are_no_texts_are_named_by_their_key(write):
    names = [point.name for point in load_points(write(axes={
        "train.lr": [0.001, 0.01], "data.grid": [[2, 3]], "seeds": [[0, 1]], "model.freeze_backbone": [True]}))]
    assert names == [f"lr-{rate}-grid-2-3-seed-0-1-freeze_backbone-true" for rate in (0.001, 0.01)]


def test_further_grids_and_what_is_shared(write, tmp_path):
    (tmp_path / "other.yaml").write_text(tiny_config(tmp_path, **{"train.batch_size": 6}).dump())
    points = load_points(write(
        set={"train.epochs": 7}, axes={"seeds": [0, 1]},
        more=[{"base": "other.yaml", "name": "other", "set": {"train.final_epochs": 9}, "axes": {"seeds": [0]}}]),
        ["train.eval_every=2"])
    assert [(point.name, point.config.train.batch_size, point.config.train.final_epochs) for point in points] == [
        ("seed-0", 4, 2), ("seed-1", 4, 2), ("other-seed-0", 6, 9)]
    assert {(point.config.train.epochs, point.config.train.eval_every) for point in points} == {(7, 2)}


def test_only_some(write):
    file = write(axes={"query.strategy": ["random", "entropy"], "seeds": [0, 1]})
    assert [point.name for point in load_points(file, only=["*-seed-1", "random-*"])] == [
        "random-seed-0", "random-seed-1", "entropy-seed-1"]
    with pytest.raises(InputError, match=r"fits no point. The points are: random-seed-0, "):
        load_points(file, only=["mael*"])


def test_the_directory_lists_every_config_in_full(write, tmp_path):
    points = load_points(write(axes={"query.strategy": ["random", "meal"], "seeds": [0]}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FILE).write_text(dump_points(points))
    assert read_points(tmp_path / "out") == points
    with pytest.raises(InputError, match="holds no sweep"):
        read_points(tmp_path / "nowhere")
    (tmp_path / "out" / FILE).write_text("points: [1]")
    with pytest.raises(InputError, match="is not what a sweep writes"):
        read_points(tmp_path / "out")


REFUSED = [
    ({"axes": {}}, "axes: Dictionary should have at least 1 item"),
    ({"axes": {"seeds": []}}, "axes.seeds has no values"),
    ({"axes": {"seeds": 3}}, "axes.seeds: Input should be a valid list"),
    ({"axes": {"seeds": [0]}, "mroe": []}, "Did you mean 'more'?"),
    ({"axes": {"network": [{"name": "frozen"}]}}, "set"),
    ({"axes": {"network": ["frozen"]}}, "point frozen: Unknown key 'network'"),
    ({"axes": {"train.epoch": [3]}}, "Did you mean 'epochs'?"),
    ({"axes": {"train.epochs": [3, 0]}}, "point epochs-0: train.epochs is 0"),
    ({"axes": {"train.epochs": [3, 3]}}, "two points are called epochs-3"),
    ({"axes": {"one": [{"name": "a", "set": {"train.epochs": 2}}, {"name": "b", "set": {"train.epochs": 2}}]}},
     "the points a and b are the same run"),
    ({"axes": {"seeds.x": [1]}}, "has no keys below it"),
    ({"base": "nowhere", "axes": {"seeds": [0]}}, "No config file 'nowhere'"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused(write, values, message):
    with pytest.raises(InputError) as caught:
        load_points(write(**values))
    assert message in " ".join(str(caught.value).split())


def test_an_axis_cannot_be_overridden(write):
    with pytest.raises(InputError, match=r"--set model.freeze_backbone: an axis of .* sets it. Take .* --only"):
        load_points(write(axes={"network": NETWORKS}), ["model.freeze_backbone=true"])


def test_a_sweep_and_a_config_are_told_apart(write, tmp_path):
    with pytest.raises(InputError, match=r"is a sweep \(it has 'axes'\), not the config of one run: meal-gpu sweep"):
        Config.load(write(axes={"seeds": [0]}))
    with pytest.raises(InputError, match=r"is the config of one run \(meal-gpu run .*\), not a sweep"):
        load_points(tmp_path / "tiny.yaml")
    with pytest.raises(InputError, match="is the config of one run"):
        load_points("camvid")
    assert not set(shipped()) & set(shipped(sweeps=True))


def test_a_point_is_as_if_written_out(write, tmp_path):
    """The point's config equals that of ``run`` with the same overrides."""
    points = load_points(write(axes={"query.strategy": ["entropy"], "seeds": [1]}))
    assert points == [Point("entropy-seed-1", Config.load(tmp_path / "tiny.yaml",
                                                          ["query.strategy=entropy", "seeds=[1]"]))]
