"""Numbers against a computation of their own, bad input against its message, and the page against the browser's rules.

The runs are small (12 x 16 pixel patches) except where the size itself is tested; no training takes place.
"""

import base64
import io
import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_run import CLASSES, PALETTE, write_run
from PIL import Image
from rich.console import Console

from meal_gpu.config import Config
from meal_gpu.errors import InputError
from meal_gpu.report import labels, load_run, print_table, summarise, write_report
from meal_gpu.report.paper import reference
from meal_gpu.report.pictures import HEAT, MAX_PICTURED, Allowance, heat_map, label_map, photo
from meal_gpu.report.summary import duration

SMALL = {"patch": (12, 16), "n_images": 20, "n_query": 4, "rounds": 2}
SMALL_QUERY = {"query": {"n_informative": 20}}


def small(path: Path, strategy: str = "meal", **changes: object) -> Path:
    return write_run(path, strategy, **{**SMALL, "overrides": SMALL_QUERY, **changes})  # type: ignore[arg-type]


def table(runs: list, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(runs, console)
    return console.export_text()


def html(runs: list, out: Path) -> str:
    return write_report(runs, out).read_text("utf-8")


def records(run: Path, seed: int) -> list[dict]:
    return [json.loads(line) for line in (run / f"seed-{seed}" / "rounds.jsonl").read_text().splitlines()]


def words(text: str) -> str:
    """What a reader sees: no scripts, no style, no tags (and so no pictures)."""
    return re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_summary_equals_a_computation_from_the_files(tmp_path):
    path = small(tmp_path / "run", seeds=(0, 1, 2))
    last = [records(path, seed)[-1] for seed in (0, 1, 2)]
    row = summarise([load_run(path)])[0]
    best = [r["miou"] for r in last]
    assert row.best is not None
    assert row.last is not None
    assert row.best.mean == pytest.approx(statistics.mean(best))
    assert row.best.std == pytest.approx(statistics.stdev(best))  # n - 1 in the denominator
    assert row.last.mean == pytest.approx(statistics.mean(r["last"]["miou"] for r in last))
    assert row.seconds == pytest.approx(sum(sum(r["seconds"].values()) for s in (0, 1, 2) for r in records(path, s)))
    assert (row.seeds, row.rounds, row.n_labelled) == (3, 3, 40)
    assert row.fraction == pytest.approx(40 / 320)


def test_one_seed_has_no_deviation(tmp_path):
    row = summarise([load_run(small(tmp_path / "run", seeds=(7,)))])[0]
    assert row.best is not None
    assert row.best.std is None
    assert "±" not in str(row.best)


def test_unfinished_run_counts_the_seeds_that_came_furthest(tmp_path):
    path = small(tmp_path / "run", rounds=4, done={1: 2, 2: 0})
    run = load_run(path)
    row = summarise([run])[0]
    assert (row.seeds, row.seeds_asked, row.rounds, row.rounds_asked) == (1, 3, 5, 5)
    assert row.best is not None
    assert row.best.mean == pytest.approx(records(path, 0)[-1]["miou"])
    assert not run.finished
    text = table([run])
    assert "1 of 3" in text
    assert "is unfinished; go on with: meal-gpu run" in " ".join(text.split())


def test_unfinished_rounds_are_said_and_have_no_difference_to_the_paper(tmp_path):
    run = load_run(write_run(tmp_path / "run", seeds=(0,), done={0: 5}, gallery=False, embedding=False))
    row = summarise([run])[0]
    assert row.paper == 0.558
    assert row.difference is None
    assert "5 of 9" in table([run])
    text = html([run], tmp_path / "r.html")
    assert "of 9: unfinished" in text
    assert "this run has not come so far" in text


def test_half_written_last_line_is_no_round(tmp_path):
    path = small(tmp_path / "run", seeds=(0,))
    file = path / "seed-0" / "rounds.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, len(lines[2]) // 2, len(lines[2]) - 2):
        file.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
        assert len(load_run(path).seeds[0].rounds) == 2
    file.write_bytes(whole.rstrip(b"\n"))  # complete but for the newline
    assert len(load_run(path).seeds[0].rounds) == 3


def test_nan_counts_as_no_value(tmp_path):
    path = small(tmp_path / "run", seeds=(0, 1))
    file = path / "seed-0" / "rounds.jsonl"
    lines = records(path, 0)
    lines[-1]["miou"] = float("nan")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = summarise([load_run(path)])[0]
    assert row.best is not None
    assert row.best.n == 1
    assert row.best.mean == pytest.approx(records(path, 1)[-1]["miou"])


@pytest.mark.parametrize(("seconds", "text"), [
    (0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (90, "1.5 min"), (780, "13 min"), (5400, "1.5 h"),
    (86400, "24 h")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_labels_are_as_long_as_needed(tmp_path):
    a, b = load_run(small(tmp_path / "a", "meal")), load_run(small(tmp_path / "b", "random"))
    c, d = load_run(small(tmp_path / "c", "meal", frozen=False)), load_run(small(tmp_path / "d", "meal"))
    assert labels([a, b]) == ["MEAL", "Random"]
    assert labels([a, c]) == ["MEAL, frozen", "MEAL, finetuned"]
    assert labels([a, b, c, d]) == ["MEAL, a", "Random, b", "MEAL, c", "MEAL, d"]


def test_table_fits_in_100_columns_and_keeps_its_numbers_in_80(tmp_path):
    runs = [load_run(write_run(tmp_path / name, strategy, frozen=frozen, gallery=False, embedding=False))
            for name, strategy, frozen in (("a-run-with-a-[long]-name", "meal_ft", False), ("b", "random", True))]
    for width in (200, 100, 80):
        text = table(runs, width)
        assert max(map(len, text.splitlines())) <= min(width, 100)
        for row in summarise(runs):
            assert row.best is not None
            assert row.last is not None
            assert all(f"{value:.3f}" in text for value in (row.best.mean, row.last.mean, row.best.std))
        assert "0.596" in text
        assert "finetuned" in text
    assert "[long]" in table(runs, 100)  # not taken for markup


# --- the paper's values -----------------------------------------------------------------------------------------------

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


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_run(path)
    return str(caught.value)


def test_not_a_run_directory(tmp_path):
    assert "no such directory" in refused(tmp_path / "nothing")
    message = refused(tmp_path)
    assert "not a run directory" in message
    assert all(name in message for name in ("config.yaml", "environment.json", "rounds.jsonl"))


def test_nothing_finished(tmp_path):
    message = refused(small(tmp_path / "run", seeds=(0,), done={0: 0}))
    assert "no finished round yet" in message
    assert "--resume" in message


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("environment.json", b"{", "damaged"),
    ("environment.json", b"\xff\xfe", "damaged"),
    ("environment.json", b'{"dataset": {}}', "dataset.name: field required"),
    ("environment.json", None, "cannot be read: No such file"),
    ("config.yaml", b"query: {strateggy: meal}", "Did you mean 'strategy'?"),
    ("config.yaml", b"\xff\xfe\x00", "config.yaml"),
    ("seed-0/rounds.jsonl", b'{"round": 0}\n', "line 1 is damaged: n_labelled: field required"),
    ("seed-0/rounds.jsonl", b"garbage\n{}\n", "line 1 is damaged"),
    ("seed-0/rounds.jsonl", b'{"round": 1, "n_labelled": 1, "fraction": 0.1}\n', "line 1 is round 1; round 0 belongs"),
    ("seed-0/rounds.jsonl",
     b'{"round": 0, "n_labelled": 1, "fraction": 0.1, "queried": [{"id": 320, "image": "", "row": 0, "col": 0}]}\n',
     "names patch 320"),
])
def test_damaged_files_are_named(tmp_path, name, content, expected):
    path = small(tmp_path / "run", seeds=(0,))
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    message = refused(path)
    assert name in message
    assert expected in message


@pytest.mark.parametrize("name", ["embedding.npz", "gallery/round-01.npz"])
def test_damaged_archives_are_named(tmp_path, name):
    path = small(tmp_path / "run", seeds=(0,))
    archive = path / "seed-0" / name
    whole = archive.read_bytes()
    archive.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match=re.escape(str(archive))):
        write_report([load_run(path)], tmp_path / "r.html")
    np.savez(archive, points=np.zeros((3, 2)))  # of another run
    with pytest.raises(InputError, match=re.escape(str(archive))):
        write_report([load_run(path)], tmp_path / "r.html")
    assert not list(tmp_path.glob("*.html"))


def test_report_that_cannot_be_written(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), gallery=False))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*file.r\.html: File exists"):
        write_report([run], tmp_path / "file" / "r.html")


def test_report_makes_its_directory(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), gallery=False))
    assert write_report([run], tmp_path / "new" / "r.html").is_file()


def test_report_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), gallery=False))
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("old")
    assert write_report([run], out) == out / "report.html"
    assert [entry.name for entry in out.iterdir()] == ["report.html"]
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")


# --- the page ---------------------------------------------------------------------------------------------------------


class Loads(HTMLParser):
    """Everything in a page that a browser would fetch, and whether its elements are closed."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.fetched += [value for key, value in attrs if key in ("src", "href", "srcset", "poster", "data", "action")]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """One page about the four strategies: (the runs, the text)."""
    root = tmp_path_factory.mktemp("four")
    runs = [load_run(small(root / name, name)) for name in ("random", "entropy", "meal", "meal_ft")]
    return runs, html(runs, root / "report.html")


def test_page_loads_nothing_and_is_well_formed(four):
    _, text = four
    page = Loads()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(value.startswith(("data:", "#")) for value in page.fetched)
    assert {value[1:] for value in page.fetched if value.startswith("#")} <= set(page.ids)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in text  # and the browser enforces it


def test_page_has_a_section_for_each_run_and_one_curve_for_all(four):
    runs, text = four
    assert all(f'id="run-{index}"' in text for index in range(len(runs)))
    assert "<h1>Random, Entropy, MEAL and MEAL-FT on CamVid</h1>" in text
    figures = [json.loads(data) for data in
               re.findall(r'<script type="application/json" data-figure="[^"]*">(.*?)</script>', text, re.DOTALL)]
    assert len(figures) == 1 + 3 + 3 * 2  # the curve, MEAL's plane per seed, MEAL-FT's planes per seed and round
    for row in summarise(runs):
        assert f"{row.best}" in text
    assert "Random chooses without an embedding" in text
    assert "optimistic" in text


def test_page_has_every_picture_and_the_tooltips_find_them(four):
    runs, text = four
    shown = set(re.findall(r'<img src="data:image/webp;base64,[^"]+" id="(patch-[^"]+)"', text))
    assert shown == {f"patch-{index}-{seed.seed}-{patch.id}" for index, run in enumerate(runs) for seed in run.seeds
                     for record in seed.rounds[1:] for patch in record.queried}
    asked = set(re.findall(r'"(patch-2-\d+-\d+)"', " ".join(re.findall(r"data-figure=.*?</script>", text, re.DOTALL))))
    assert {f"patch-2-0-{patch.id}" for record in runs[2].seeds[0].rounds for patch in record.queried} <= asked


def test_class_table_holds_the_means(tmp_path):
    path = small(tmp_path / "run", seeds=(0, 1), gallery=False)
    text = html([load_run(path)], tmp_path / "r.html")
    row = re.search(r'<th scope="row"><i[^>]*></i>sky</th>(.*?)</tr>', text)
    assert row
    given = [float(value) for value in re.findall(r">(0\.\d\d)<", row[1])]
    expected = [statistics.mean(records(path, seed)[k]["iou"]["sky"] for seed in (0, 1)) for k in range(3)]
    assert given == pytest.approx(expected, abs=0.0051)


def test_absent_class_is_a_dash_with_a_note(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), absent=("pole",), gallery=False))
    text = html([run], tmp_path / "r.html")
    row = re.search(r"</i>pole</th>(.*?)</tr>", text)
    assert row
    assert row[1] == "<td>–</td>" * 3
    assert "left out of the mean" in text
    whole = load_run(small(tmp_path / "whole", seeds=(0,), gallery=False))
    assert "– stands for a class" not in html([whole], tmp_path / "w.html")


@pytest.mark.parametrize("changes", [{"n_val_images": 0}, {"absent": CLASSES}])
def test_no_miou_at_all(tmp_path, changes):
    run = load_run(small(tmp_path / "run", **changes))
    row = summarise([run])[0]
    assert row.best is None
    assert row.last is None
    text = html([run], tmp_path / "r.html")
    assert "No mIoU to draw" in text
    assert not re.search(r"\bnan\b|\bNone\b", words(text))
    assert "–" in table([run])


def test_time_is_told_per_round_and_stage(tmp_path):
    path = small(tmp_path / "run", "entropy", seeds=(0, 1), gallery=False)
    text = html([load_run(path)], tmp_path / "r.html")
    lines = [*records(path, 0), *records(path, 1)]
    for stage in ("train", "evaluate", "score"):
        total = sum(line["seconds"].get(stage, 0) for line in lines)
        assert re.search(rf"</i>{stage}</th><td>{re.escape(duration(total))}</td>", text)
    widths = [sum(map(float, re.findall(r"width:([\d.]+)%", bar))) for bar in
              re.findall(r'<div class="bar">(.*?)</div>', text)]
    rounds = [sum(line["seconds"].values()) for line in records(path, 0)]  # both seeds took the same time
    assert widths == pytest.approx([100 * value / max(rounds) for value in rounds], abs=0.05)


def test_missing_gallery_and_embedding_are_said(tmp_path):
    meal = load_run(small(tmp_path / "meal", seeds=(0,), gallery=False, embedding=False))
    text = html([meal], tmp_path / "r.html")
    assert "seed-0/embedding.npz is not there" in text
    assert "seed-0/gallery is not there" in text
    first = load_run(small(tmp_path / "first", "meal_ft", seeds=(0,), done={0: 1}))
    assert "no queried patch has been labelled yet" in html([first], tmp_path / "f.html")


def test_supervised_run_is_a_line_across(tmp_path):
    run = load_run(write_run(tmp_path / "all", "random", seeds=(0,), rounds=0, gallery=False,
                             overrides={"query": {"n_initial_images": 0}}))
    meal = load_run(write_run(tmp_path / "meal", seeds=(0,), gallery=False, embedding=False))
    text = html([run, meal], tmp_path / "r.html")
    value = records(tmp_path / "all", 0)[0]["miou"]
    assert f"Supervised {value:.3f}" in text
    assert "every patch is labelled, nothing is chosen" in text
    assert "Everything was labelled from the start" in text


def test_people_are_told_what_to_label(tmp_path):
    path = small(tmp_path / "run", seeds=(0,), done={0: 2}, overrides={"query": {"n_informative": 20,
                                                                               "oracle": "people"}})
    text = html([load_run(path)], tmp_path / "r.html")
    assert "Waiting for labels" in text
    assert "Seed 0 goes on when these 4 patches have masks." in text
    assert all(patch["image"] in text for patch in records(path, 0)[-1]["next_query"])


def test_names_are_escaped(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    names = [f"road{evil}", "sky", "car"]
    path = small(tmp_path / "<b>run", names=names, image_name=evil + "{}.png", overrides={
        "data": {"dataset": "folder", "class_names": names, "root": f"/data/{evil.replace('/', '')}"},
        "query": {"n_informative": 20, "strategy": f"meal{evil}"}}, strategy="meal")
    config_path = path / "config.yaml"
    assert evil in config_path.read_text()
    text = html([load_run(path), load_run(small(tmp_path / "b"))], tmp_path / "r.html")
    page = Loads()
    page.feed(text)
    assert page.open == []
    assert "x" not in page.fetched
    assert "<b>run" not in text


def test_different_data_sets_share_no_axis(tmp_path):
    camvid = load_run(small(tmp_path / "a", seeds=(0,), gallery=False))
    demo = load_run(small(tmp_path / "b", seeds=(0,), gallery=False, overrides={
        "data": {"dataset": "demo", "root": None}, **SMALL_QUERY}))
    text = html([camvid, demo], tmp_path / "r.html")
    assert "<h3>CamVid</h3>" in text
    assert "<h3>demo scenes</h3>" in text
    assert text.count("validation mIoU\\") + text.count('"validation mIoU"') == 2


# --- pictures ---------------------------------------------------------------------------------------------------------


def pixels(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_label_map_is_exact_and_void_is_its_own_colour():
    labels_ = np.array([[0, 1, 10], [255, 10, 0]], np.uint8).repeat(4, 0).repeat(4, 1)
    found = pixels(label_map(labels_, PALETTE))
    for value in (0, 1, 10):
        assert (found[labels_ == value] == PALETTE[value]).all()
    assert (found[labels_ == 255] < 40).all()


def test_entropy_scale_is_common_and_monotonic():
    limit = math.log(11)
    flat = [pixels(heat_map(np.full((16, 16), value, np.float16), limit)).mean((0, 1))
            for value in (0, limit / 2, limit)]
    for colour, step in zip(flat, (0, 127, 255), strict=True):
        assert np.abs(colour - HEAT[step]).max() < 12  # lossy
    lightness = [colour.sum() for colour in flat]
    assert lightness == sorted(lightness)
    holes = np.full((16, 16), np.nan, np.float16)
    assert np.abs(pixels(heat_map(holes, limit)).mean((0, 1)) - HEAT[255]).max() < 12


def test_wide_patches_are_reduced():
    assert pixels(photo(np.zeros((128, 256, 3), np.uint8))).shape == (80, 160, 3)
    assert pixels(label_map(np.zeros((128, 256), np.uint8), PALETTE)).shape == (80, 160, 3)


def test_first_seeds_get_pictures_before_others(tmp_path, monkeypatch):
    monkeypatch.setattr("meal_gpu.report.page.pictures.Allowance", lambda: Allowance(16))
    runs = [load_run(small(tmp_path / name, name, seeds=(0, 1), n_query=6)) for name in ("meal", "entropy")]
    text = html(runs, tmp_path / "r.html")
    assert len(re.findall(r'id="patch-\d-0-', text)) == 16
    assert not re.findall(r'id="patch-\d-1-', text)
    assert "4 of 6 patches shown" in text
    assert text.count("pictures of seed 1 are left out") == 2


def test_page_of_a_whole_run_stays_small(tmp_path):
    runs = [load_run(write_run(tmp_path / "run", "meal", seeds=(0,), rounds=2))]
    bare = [load_run(write_run(tmp_path / "bare", "meal", seeds=(0,), rounds=2, gallery=False))]
    size, without = (write_report(given, tmp_path / "r.html").stat().st_size for given in (runs, bare))
    assert without < 2e6
    assert (size - without) / 64 * MAX_PICTURED + without < 12e6
