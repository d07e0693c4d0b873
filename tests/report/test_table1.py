"""The paper's Table 1: the shipped sweeps span it, and a sweep's directory fills it."""

import io

import numpy as np
import pytest
from fake_run import write_run
from rich.console import Console

from meal_gpu.config import Config
from meal_gpu.configfile import shipped
from meal_gpu.errors import InputError
from meal_gpu.report import load_runs, load_sweep, notes, print_tables, write_report
from meal_gpu.report.paper import COLUMNS, TABLE_1, reference
from meal_gpu.report.table1 import TITLES, fill
from meal_gpu.sweepfile import FILE, Point, dump_points, load_points


def write_sweep(path, *runs, also=()):
    """A sweep's directory: ``runs`` are (name, options of `write_run`); ``also`` names runs that have not begun."""
    points = []
    for name, options in runs:
        write_run(path / name, gallery=False, embedding=False, n_images=40, **options)
        points.append(Point(name, Config.load(path / name / "config.yaml")))
    points += [Point(name, points[0].config.model_copy(update={"seeds": [9]})) for name in also]
    (path / FILE).write_text(dump_points(points))
    return path


def printed(runs, width=100):
    console = Console(file=io.StringIO(), width=width)
    print_tables(runs, console)
    return console.file.getvalue()


@pytest.fixture
def camvid(tmp_path):
    """Random with three seeds, each a run of its own; MEAL with two seeds, of which one is unfinished."""
    runs = [(f"frozen-random-seed-{seed}", {"strategy": "random", "seeds": [seed]}) for seed in range(3)]
    runs += [("frozen-meal-seed-0", {"strategy": "meal", "seeds": [0]}),
             ("frozen-meal-seed-1", {"strategy": "meal", "seeds": [1], "done": {1: 4}}),
             ("frozen-entropy-seed-0", {"strategy": "entropy", "seeds": [0], "done": {0: 2}})]
    return write_sweep(tmp_path / "table", *runs, also=["frozen-meal_ft-seed-0"])


def test_the_shipped_sweeps_span_table_1():
    """Every value of Table 1 has its runs, with the paper's training; and there is no other run."""
    assert shipped(sweeps=True) == ["demo_compared", "recipe_camvid", "strategies_camvid", "table1_camvid",
                                     "table1_cityscapes"]
    for name, seeds in (("table1_camvid", 3), ("table1_cityscapes", 1)):
        dataset = name.removeprefix("table1_")
        points = load_points(name)
        found = []
        for point in points:
            there = reference(point.config)
            assert there is not None
            assert there.departures == []
            found.append((point.config.model.freeze_backbone, there.miou))
        rows = [row for row in TABLE_1 if row.dataset == dataset]
        wanted = [(not row.finetuned, value) for row in rows for value in row.miou]
        wanted += list({(not row.finetuned, row.supervised) for row in rows})
        assert sorted(found) == sorted(wanted * seeds)
        assert len({str(point.config.seeds) for point in points}) == seeds


def test_a_point_of_the_table_is_the_config_of_that_name():
    """The sweep's base and axes come to what the configs of single runs say."""
    points = {point.name: point.config for point in load_points("table1_camvid")}
    seed = {"seeds": [0]}
    assert points["frozen-meal-seed-0"] == Config.load("camvid").model_copy(update=seed)
    assert points["finetuned-meal-seed-0"] == Config.load("camvid_finetune").model_copy(update=seed)
    assert points["supervised-frozen-seed-0"] == Config.load("camvid_supervised").model_copy(update=seed)
    points = {point.name: point.config for point in load_points("table1_cityscapes")}
    assert points["frozen-2-images-meal-seed-0"] == Config.load("cityscapes")
    assert points["frozen-20-images-meal-seed-0"] == Config.load("cityscapes_large_init")
    assert points["supervised-frozen-seed-0"].train == Config.load("camvid_supervised").train
    assert points["supervised-frozen-seed-0"].query.n_initial_images == 0


def test_runs_that_differ_in_their_seeds_are_one(camvid):
    runs = load_sweep(camvid)
    assert [(run.title, [seed.seed for seed in run.seeds], run.config.seeds, run.path.name) for run in runs] == [
        ("Random", [0, 1, 2], [0, 1, 2], "frozen-random-seed-*"), ("MEAL", [0, 1], [0, 1], "frozen-meal-seed-*"),
        ("Entropy", [0], [0], "frozen-entropy-seed-0")]
    assert runs[0].finished
    assert not runs[1].finished
    assert runs[1].resume_command == f"meal-gpu sweep --resume {camvid}"
    said = " ".join(notes(runs))
    assert f"1 runs of the sweep {camvid} have no finished round yet, such as frozen-meal_ft-seed-0" in said


def test_cells_hold_mean_deviation_and_difference(camvid):
    (line,) = fill(load_sweep(camvid))
    assert line.title == "CamVid, frozen, 32 + 8 × 32"
    cells = dict(zip(TITLES, line.cells, strict=True))
    values = [load_runs([camvid / f"frozen-random-seed-{seed}"])[0].seeds[0].rounds[-1].miou for seed in range(3)]
    here = cells["Random"].here
    assert here.n == 3
    assert here.mean == pytest.approx(np.mean(values))
    assert here.std == pytest.approx(np.std(values, ddof=1))
    assert cells["MEAL"].here.n == 1, "of two seeds one is finished"
    assert cells["Entropy"].here is None
    assert cells["MEAL-FT"].run is None
    assert [cell.paper for cell in line.cells] == [0.509, 0.516, 0.558, 0.573, 0.635]

    text = printed(load_sweep(camvid))
    assert f"{here.mean - 0.509:+.3f}" in text.split("Table 1")[-1]
    assert "(1/2 seeds)" in " ".join(text.split())
    assert f"{here.mean:.3f} ±{here.std:.3f}" in text
    assert "2/9 rounds" in text
    assert all(len(row) <= 100 for row in text.splitlines())
    assert f"{here.mean:.3f}" in printed(load_sweep(camvid), 80).split("Table 1")[-1]


def test_cityscapes_has_four_rows(tmp_path):
    runs = []
    for frozen in (True, False):
        for n_initial, n_query, rounds in ((2, 32, 14), (20, 25, 6)):
            query = {"query": {"n_initial_images": n_initial, "strategy": "entropy", "rounds": rounds,
                               "n_query": n_query},
                     "data": {"dataset": "cityscapes", "root": "/data", "image_size": [512, 1024], "context": "image"}}
            runs.append((f"{frozen}-{n_initial}", {"strategy": "entropy", "frozen": frozen, "seeds": [0],
                                                   "rounds": rounds, "n_query": n_query, "overrides": query}))
    runs.append(("supervised", {"strategy": "random", "seeds": [0], "rounds": 0, "overrides": {
        "query": {"n_initial_images": 0, "rounds": 0, "strategy": "random"},
        "data": {"dataset": "cityscapes", "root": "/data", "image_size": [512, 1024]}}}))
    found = load_sweep(write_sweep(tmp_path / "table", *runs))
    lines = fill(found)
    assert [line.row for line in lines] == [row for row in TABLE_1 if row.dataset == "cityscapes"]
    for line in lines:
        entropy, supervised = line.cells[COLUMNS.index("entropy")], line.cells[-1]
        assert entropy.here is not None
        assert entropy.paper == line.row.miou[1]
        assert (supervised.here is not None) == (not line.row.finetuned), "the frozen one stands in both frozen rows"
    assert len({entropy.here.mean for line in lines for entropy in [line.cells[1]]}) == 4


def test_the_page_shows_the_table_and_draws_it(camvid, tmp_path):
    page = write_report(load_sweep(camvid), tmp_path / "page.html").read_text()
    assert 'id="table-1"' in page
    assert "CamVid, frozen, 32 + 8 × 32" in page
    assert '"factors":["Random","Entropy","MEAL","MEAL-FT","Supervised"]' in page.replace(" ", "")


def test_one_run_or_another_protocol_has_no_table(tmp_path):
    write_run(tmp_path / "one", seeds=[0], n_images=40, gallery=False, embedding=False)
    write_run(tmp_path / "other", seeds=[0], n_images=40, gallery=False, embedding=False, n_query=16)
    assert "Table 1" not in printed(load_runs([tmp_path / "one"]))
    assert "Table 1" not in printed(load_runs([tmp_path / "one", tmp_path / "other"]))


def test_a_sweep_without_a_round_says_how_to_go_on(tmp_path):
    (tmp_path / FILE).write_text(dump_points([Point("one", Config.load({"seeds": [0]}))]))
    with pytest.raises(InputError, match=r"has finished a round yet. Go on with it: meal-gpu sweep --resume"):
        load_runs([tmp_path])
