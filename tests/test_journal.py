"""The journal of what people gave: read whole or refused."""

import pytest

from meal_gpu.config import Config
from meal_gpu.errors import InputError
from meal_gpu.journal import JOURNAL, Pixels, Taken, accept_journal, newest, read_journal, write_journal
from meal_gpu.records import write_config


def taken(item: str = "r00-0001-00000000", **values) -> Taken:
    return Taken(**{"item": item, "round": 0, "query": "round-00", "patch": 3, "status": "labelled",
                    "annotator": "ann@example.org", "lead_time": 12.5, "added": "2026-01-01T00:00:00Z", **values})


@pytest.fixture
def seed(tmp_path):
    write_config(tmp_path, Config.load({}))
    (tmp_path / "seed-0").mkdir()
    return tmp_path / "seed-0"


LINES = [taken(pixels=Pixels(prediction=5, changed=2, manual=1)), taken("r00-0002-00000000", status="skipped"),
         taken(revision=2, annotator="ann@example.org"), taken(annotator="Zoë")]


def test_what_is_written_is_read(seed):
    assert read_journal(seed) == []
    write_journal(seed, LINES)
    assert read_journal(seed) == LINES


def test_the_newest_of_each_annotator_counts():
    found = newest(LINES)
    assert found["r00-0001-00000000"] == {"ann@example.org": LINES[2], "Zoë": LINES[3]}
    assert found["r00-0002-00000000"]["ann@example.org"].status == "skipped"


@pytest.mark.parametrize("change", [
    lambda text: text.replace(b'"changed": 2', b'"changed": 3'),
    lambda text: b"\n".join(text.split(b"\n")[1:]),
    lambda text: text[: len(text) // 2],
    lambda text: text + b"{}\n",
    lambda text: b"\n" + text,
])
def test_an_edited_journal_is_refused_and_may_be_accepted(seed, change):
    write_journal(seed, LINES)
    (seed / JOURNAL).write_bytes(change((seed / JOURNAL).read_bytes()))
    with pytest.raises(InputError, match=r"labels.jsonl is damaged in line"):
        read_journal(seed)


def test_a_journal_of_another_run_is_refused_and_may_be_accepted(seed, tmp_path):
    write_journal(seed, LINES)
    write_config(tmp_path, Config.load({}))
    with pytest.raises(InputError, match="is of another run"):
        read_journal(seed)
    assert accept_journal(seed)
    assert read_journal(seed) == LINES
    assert not accept_journal(seed)


def test_a_link_in_its_place_is_not_followed(seed, tmp_path):
    write_journal(seed, LINES)
    (seed / JOURNAL).rename(tmp_path / "elsewhere")
    (seed / JOURNAL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        read_journal(seed)
