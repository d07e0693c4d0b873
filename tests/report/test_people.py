"""The people's side: effort, what they left of predictions, and agreement, against sums by hand."""

from pathlib import Path

import numpy as np
import pytest
from fake_run import html, small, words
from PIL import Image

from meal_gpu.journal import Pixels, Taken, write_journal
from meal_gpu.report import load_run
from meal_gpu.report.people import Effort, agreement, journal


def line(item: str, status: str = "labelled", annotator: str = "ann", seconds: float | None = 60.0, round_: int = 1,
         **more: object) -> Taken:
    return Taken(item=item, round=round_, query=f"round-{round_:02d}", patch=0, status=status, annotator=annotator,
                 lead_time=seconds, **more)


def test_effort_by_hand():
    effort = Effort.of([
        line("a", pixels=Pixels(prediction=90, changed=10, manual=5)),
        line("b", "partial", seconds=120, pixels=Pixels(prediction=30, changed=70)),
        line("c", "skipped", seconds=5),
        line("d", seconds=None),
    ])
    assert (effort.labelled, effort.partial, effort.skipped) == (3, 1, 1)
    assert effort.mean == 90
    assert effort.unchanged == pytest.approx(120 / 200)


def test_a_revision_takes_the_place_of_what_it_corrects():
    effort = Effort.of([line("a", "skipped"), line("a", revision=2, seconds=30)])
    assert (effort.labelled, effort.skipped, effort.seconds) == (1, 0, (30.0,))


def test_the_later_word_of_two_people_counts_for_a_patch_and_both_for_the_time():
    effort = Effort.of([line("a", updated="2026-01-01T10:00:00Z"),
                        line("a", "skipped", "bob", updated="2026-01-02T10:00:00Z")])
    assert (effort.labelled, effort.skipped, len(effort.seconds)) == (0, 1, 1)


def test_what_more_patches_cost():
    effort = Effort.of([line(str(i), seconds=60) for i in range(5)])
    assert effort.expected(10) == (600, 600, 600)
    times = np.random.default_rng(0).exponential(100, 30)
    mean, low, high = Effort.of([line(str(i), seconds=t) for i, t in enumerate(times)]).expected(20)  # type: ignore
    assert mean == pytest.approx(20 * times.mean())
    assert low < mean < high
    few = Effort.of([line(str(i), seconds=t) for i, t in enumerate(times[:3])]).expected(20)
    assert few is not None
    assert few[2] - few[1] > 0
    assert Effort.of([line("a"), line("b")]).expected(10) is None


def labelled(seed: Path, item: str, annotator: str, pixels: np.ndarray) -> Taken:
    file = seed / "labels" / f"{item}-{annotator}.png"
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return line(item, annotator=annotator, labels=file.relative_to(seed).as_posix())


def test_agreement_by_hand(tmp_path):
    one = np.array([[0, 1, 1, 254], [2, 2, 255, 0]])
    other = np.array([[0, 1, 2, 1], [2, 254, 255, 1]])
    taken = [labelled(tmp_path, "a", "ann", one), labelled(tmp_path, "a", "bob", other),
             labelled(tmp_path, "b", "ann", one)]
    agreed = agreement(tmp_path, taken)
    assert agreed is not None
    # Six pixels of which both say something; four of them alike.
    assert (agreed.items, agreed.pixels, agreed.same) == (1, 6, 4)
    assert agreement(tmp_path, taken[1:]) is None


def test_labels_that_are_gone_or_lead_elsewhere_are_left_out(tmp_path):
    seed = tmp_path / "seed-0"
    seed.mkdir()
    pixels = np.zeros((2, 2))
    taken = [labelled(seed, "a", name, pixels) for name in ("ann", "bob", "eve")]
    (seed / taken[0].labels).unlink()
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "outside.png")
    (seed / taken[1].labels).unlink()
    (seed / taken[1].labels).symlink_to(tmp_path / "outside.png")
    assert agreement(seed, taken) is None
    taken[2] = taken[2].model_copy(update={"labels": "../outside.png"})
    assert agreement(seed, taken) is None


def test_the_report_shows_them_where_there_is_a_journal(tmp_path):
    path = small(tmp_path / "run", seeds=(0,))
    before = html([load_run(path)], tmp_path / "before.html")
    assert "people’s side" not in before
    seed = path / "seed-0"
    write_journal(seed, [line("a", pixels=Pixels(prediction=3, changed=1)), line("b", "skipped", round_=2),
                         labelled(seed, "c", "ann", np.zeros((2, 2))), labelled(seed, "c", "bob", np.zeros((2, 2)))])
    assert len(journal(seed)) == 4
    after = html([load_run(path)], tmp_path / "after.html")
    assert "The people’s side" in after
    shown = words(after)
    assert "75.0%" in shown
    assert "1 patches were labelled by more than one person" in shown
