"""The page, against the browser's rules and the files that it tells of.

The runs are small (12 x 16 pixel patches); no training takes place.
"""

import json
import re
import statistics
from html.parser import HTMLParser

import pytest
from fake_run import CLASSES, SMALL_QUERY, html, records, small, table, words, write_run

from meal_gpu.report import load_run, summarise
from meal_gpu.report.summary import duration


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
