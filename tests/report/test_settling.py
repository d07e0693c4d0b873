"""Kappa and moved classes against plain counting and scikit-learn; what is said of them; files that are damaged."""

import itertools
import json
import logging
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from fake_run import html, records, small, words
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.report import load_run
from meal_gpu.report.settling import AGREED, LAST, Change, advice, change, changes, confusion, kappa_of, most_moved

NAMES = ["road", "sky", "pole", "car"]
MAPS = arrays.arrays(np.uint8, (3, 4, 5), elements=st.sampled_from([0, 1, 2, 3, 255]))


def plain_kappa(before: np.ndarray, after: np.ndarray) -> float | None:
    """By its definition, pixel by pixel; 255 in either is left out."""
    pairs = [(int(a), int(b)) for a, b in zip(before.flat, after.flat, strict=True) if a != 255 and b != 255]
    if not pairs or len({c for pair in pairs for c in pair}) == 1:
        return None
    n = len(pairs)
    same = sum(a == b for a, b in pairs) / n
    chance = sum(sum(a == c for a, _ in pairs) * sum(b == c for _, b in pairs) for c in range(4)) / n**2
    return (same - chance) / (1 - chance)


@given(MAPS, MAPS)
def test_kappa_is_that_of_plain_counting_and_of_scikit_learn(before, after):
    found = kappa_of(confusion(before, after, 4))
    expected = plain_kappa(before, after)
    if expected is None:
        assert found is None
        return
    assert found == pytest.approx(expected, abs=1e-12)
    said = (before < 4) & (after < 4)
    assert found == pytest.approx(cohen_kappa_score(before[said], after[said]), abs=1e-12)
    assert kappa_of(confusion(after, before, 4)) == pytest.approx(found, abs=1e-12)


@given(MAPS, MAPS)
def test_what_moved_is_that_of_plain_counting(before, after):
    found = change(1, 3, before, after, 4)
    said = (before != 255) & (after != 255)
    for c in range(4):
        either, both = ((before == c) | (after == c)) & said, (before == c) & (after == c)
        assert found.shares[c] == pytest.approx(either.sum() / max(said.sum(), 1))
        assert found.moved[c] == (pytest.approx(1 - both.sum() / either.sum()) if either.any() else None)


@pytest.mark.parametrize(("before", "after", "kappa"), [
    ([0, 1, 2, 3], [0, 1, 2, 3], 1.0),
    ([0, 0, 0, 0], [0, 0, 0, 0], None),  # one class: agreement is chance
    ([0, 0, 0, 0], [1, 1, 1, 1], 0.0),
    ([0, 1, 0, 1], [1, 0, 1, 0], -1.0),
    ([255, 255], [0, 1], None),
    ([0, 1, 255, 1], [0, 1, 3, 255], 1.0),
    ([], [], None),
])
def test_kappa_at_its_edges(before, after, kappa):
    assert kappa_of(confusion(np.array(before, np.uint8), np.array(after, np.uint8), 4)) == kappa


def test_more_pixels_than_products_of_32_bits_hold():
    counts = np.array([[10**11, 10**9], [10**9, 10**11]])
    assert kappa_of(counts) == pytest.approx((100 / 101 - 0.5) / 0.5)


def at(round_: int, kappa: float | None, moved: tuple[float, ...] = (0.01, 0.0, 0.4, 0.2),
       shares: tuple[float, ...] = (0.6, 0.3, 0.05, 0.05)) -> Change:
    return Change(round_, 32, kappa, moved, shares)


def said(*kappas: float | None) -> str:
    return advice([at(i, kappa) for i, kappa in enumerate(kappas, start=1)], NAMES, len(kappas) + 1)


def test_words():
    assert "have stopped changing" in said(0.99, 0.99, 0.99)
    assert "have stopped changing" in said(0.5, 0.985, 0.995, 0.991)
    assert "fixed images still change" in said(0.995, 0.97, 0.995)
    assert "rising" in said(0.7, 0.8, 0.85)
    assert "falling" in said(0.9, 0.8, 0.85)
    assert "nothing yet" in advice([], NAMES, 1)
    assert "one class" in said(0.9, None)
    assert "those of the last two rounds are not there" in advice([at(1, 0.9)], NAMES, 3)
    assert "Most in the last round: pole 40%, car 20%, road 1%." in said(0.5)
    assert all(len(line.splitlines()) == 1 for line in (said(0.99, 0.99, 0.99), said(0.5), advice([], NAMES, 1)))


def test_kappa_that_no_longer_rises_is_not_a_stop():
    """The level is tested, never its change: training from scratch may keep it anywhere below 1."""
    text = said(0.8, 0.8, 0.8, 0.8)
    assert "fixed images still change" in text
    assert "level: perhaps as far as it gets" in text


def test_two_rounds_that_agree_are_too_few():
    assert LAST == 3
    assert "fixed images still change" in said(1.0, 1.0)
    gap = [at(2, 1.0), at(4, 1.0), at(5, 1.0)]  # round 3 is not there
    assert "fixed images still change" in advice(gap, NAMES, 6)


def test_road_and_sky_do_not_hide_a_class_that_flips():
    """Three in a thousand pixels: kappa is above the level, and the line names the class."""
    before = np.repeat(np.array([0, 1, 2], np.uint8), [600, 397, 3])
    after = np.where(before == 2, 3, before).astype(np.uint8)
    one = change(3, 1, before, after, 4)
    assert one.kappa is not None
    assert one.kappa > AGREED
    assert most_moved(one, NAMES)[:2] == [("pole", 1.0), ("car", 1.0)]
    text = advice([at(1, 0.995), at(2, 0.995), one], NAMES, 4)
    assert "have stopped changing" in text
    assert "pole 100%" in text


def test_a_class_of_a_few_pixels_is_not_named():
    assert ("pole", 0.4) not in most_moved(at(1, 0.9, shares=(0.6, 0.3, 0.0001, 0.05)), NAMES)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return small(tmp_path_factory.mktemp("stop") / "run", seeds=(0, 1), rounds=4, stop_set=True, gallery=False,
                 embedding=False)


def status(path: Path) -> str:
    result = CliRunner().invoke(cli.app, ["status", str(path)])
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split())


def maps(path: Path, k: int) -> np.ndarray:
    with np.load(path / "seed-0" / "stop-set" / f"predictions-{k:02d}.npz") as held:
        return held["predictions"]


def test_the_changes_of_a_run_are_those_of_its_files(finished):
    run = load_run(finished)
    found = changes(run, run.seeds[0])
    assert [one.round for one in found] == [1, 2, 3, 4]
    for one, (before, after) in zip(found, itertools.pairwise(maps(finished, k) for k in range(5)), strict=True):
        assert one.kappa == pytest.approx(cohen_kappa_score(before.ravel(), after.ravel()))
        assert one.images == 8
    assert changes(run, run.seeds[0], LAST) == found[1:]
    assert changes(run, run.seeds[0], 9) == found


def test_status_has_one_line_per_seed(finished):
    text = status(finished)
    assert text.count("Predictions on 8 fixed images still change (kappa") == 2
    assert text.count("fixed images") == 2


def test_the_report_has_a_curve_and_a_table(finished, tmp_path):
    page = html([load_run(finished)], tmp_path / "report.html")
    text = words(page)
    assert "Do predictions still change?" in text
    assert "8 images of the pool, drawn once per seed" in text
    assert "kappa with the round before" in page


def test_runs_of_before_say_nothing_of_it(tmp_path):
    path = small(tmp_path / "run", seeds=(0,), rounds=4, gallery=False, embedding=False)
    assert "redictions" not in status(path)
    assert "Do predictions still change?" not in words(html([load_run(path)], tmp_path / "report.html"))


def test_the_first_round_says_that_it_takes_two(tmp_path):
    path = small(tmp_path / "run", seeds=(0,), rounds=4, done={0: 1}, stop_set=True, gallery=False, embedding=False)
    assert "Whether predictions still change, nothing yet: it takes two rounds" in status(path)
    assert "Do predictions still change?" not in words(html([load_run(path)], tmp_path / "report.html"))


def other(file: Path, **changed: object) -> None:
    with np.load(file) as held:
        kept = {**held, **changed}
    np.savez_compressed(file, **kept)  # type: ignore[arg-type]


DAMAGE = {
    "empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "a directory": lambda file: (file.unlink(), file.mkdir()),
    "a link": lambda file: (file.rename(file.parent / "moved"), file.symlink_to(file.parent / "moved")),
    "of another round": lambda file: shutil.copyfile(file.with_name("predictions-00.npz"), file),
    "other pixels": lambda file: other(file, predictions=np.zeros((8, 12, 16), np.uint8)),
    "other images": lambda file: other(file, images=np.arange(1, 9)),
    "another type": lambda file: other(file, predictions=np.zeros((8, 12, 16), np.int64)),
    "another shape": lambda file: other(file, predictions=np.zeros((7, 12), np.uint8)),
    "more arrays": lambda file: other(file, more=np.zeros(1)),
    "larger than it may be": lambda file: other(file, predictions=np.zeros((8, 2000, 2000), np.uint8)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_said_in_one_line_and_left_out(finished, tmp_path, caplog, damage):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    whole = changes(load_run(path), load_run(path).seeds[0])
    DAMAGE[damage](path / "seed-0" / "stop-set" / "predictions-01.npz")
    run = load_run(path)
    caplog.set_level(logging.WARNING, "meal_gpu")
    assert changes(run, run.seeds[0]) == whole[2:]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "predictions-01.npz" in said
    assert said.count("\n") == 0
    assert "Predictions on 8 fixed images" in status(path)


def test_files_that_are_gone_are_left_out_without_a_word(finished, tmp_path, caplog):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    shutil.rmtree(path / "seed-0" / "stop-set")
    caplog.set_level(logging.WARNING, "meal_gpu")
    assert changes(load_run(path), load_run(path).seeds[0]) == []
    assert not caplog.records
    assert "Whether predictions still change, nothing yet" in status(path)


def test_images_that_have_gone_are_left_out_of_the_comparison(finished, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    lines, kept = records(path, 0), maps(path, 2)[2:]
    lines[2]["stop_set"] = {"images": list(range(2, 8)), "predictions": zlib.crc32(kept.tobytes())}
    (path / "seed-0" / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    other(path / "seed-0" / "stop-set" / "predictions-02.npz", images=np.arange(2, 8), predictions=kept)
    run = load_run(path)
    found = changes(run, run.seeds[0])
    assert [one.images for one in found] == [8, 6, 6, 8]
    assert found[1].kappa == pytest.approx(cohen_kappa_score(maps(path, 1)[2:].ravel(), kept.ravel()))
