"""The numbers of a report against a computation of their own."""

import json
import statistics

import pytest
from fake_run import html, records, small, table, write_run

from meal_gpu.report import labels, load_run, summarise
from meal_gpu.report.summary import duration


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
    file.write_bytes(whole.rstrip(b"\n"))  # complete but for the newline: --resume repeats it
    assert len(load_run(path).seeds[0].rounds) == 2


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
