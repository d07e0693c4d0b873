"""The lines of a run: durable, and read back after any interruption."""

import numpy as np
import pytest

from meal_gpu.config import Config
from meal_gpu.errors import InputError
from meal_gpu.records import (
    append_round,
    drop_unfinished_line,
    edited,
    read_config,
    read_rounds,
    update_arrays,
    write_config,
)

RECORDS = [{"round": k, "miou": 0.1 * k, "iou": {"Straße": None, "car": 0.5}, "queried": [{"id": k}]} for k in range(3)]


def test_round_trip(tmp_path):
    assert read_rounds(tmp_path) == []
    for record in RECORDS:
        append_round(tmp_path, record)
    assert read_rounds(tmp_path) == RECORDS


def test_every_cut_of_the_last_line_reads_as_the_rounds_before(tmp_path):
    for record in RECORDS[:2]:
        append_round(tmp_path, record)
    whole = (tmp_path / "rounds.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        (tmp_path / "rounds.jsonl").write_bytes(whole[:cut])
        assert read_rounds(tmp_path) == RECORDS[:1]
        drop_unfinished_line(tmp_path)
        assert (tmp_path / "rounds.jsonl").read_bytes() == whole[:first]
    append_round(tmp_path, RECORDS[1])
    assert (tmp_path / "rounds.jsonl").read_bytes() == whole


def test_dropping_leaves_whole_lines_and_missing_files_alone(tmp_path):
    drop_unfinished_line(tmp_path)
    assert not (tmp_path / "rounds.jsonl").exists()
    append_round(tmp_path, RECORDS[0])
    drop_unfinished_line(tmp_path)
    assert read_rounds(tmp_path) == RECORDS[:1]


def test_a_first_line_that_was_cut_is_no_round(tmp_path):
    (tmp_path / "rounds.jsonl").write_bytes(b'{"round": 0, "mio')
    assert read_rounds(tmp_path) == []
    drop_unfinished_line(tmp_path)
    assert (tmp_path / "rounds.jsonl").read_bytes() == b""


# Text that is no JSON, bytes that are no text, what a power cut leaves, JSON of another form, and an empty line.
@pytest.mark.parametrize("line", [b'{"round": 1,', b'{"round": 1, "name": "\xff\xfe"}', b"\0" * 12, b"[1, 2]", b"null",
                                  b'{"miou": 1}', b""])
def test_a_damaged_line_is_named(tmp_path, line):
    for record in RECORDS:
        append_round(tmp_path, record)
    file = tmp_path / "rounds.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[1] = line
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=r"rounds\.jsonl is damaged in line 2 .*Delete its lines from that one on"):
        read_rounds(tmp_path)


@pytest.mark.parametrize("order", [(1, 2), (0, 2), (0, 1, 1), (1, 0)])
def test_rounds_that_are_missing_or_doubled_are_noticed(tmp_path, order):
    for k in order:
        append_round(tmp_path, RECORDS[k])
    with pytest.raises(InputError, match="not 0, 1, 2"):
        read_rounds(tmp_path)


def test_what_json_cannot_hold_is_not_written(tmp_path):
    append_round(tmp_path, RECORDS[0])
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_round(tmp_path, {"round": 1, "miou": float("nan")})
    assert read_rounds(tmp_path) == RECORDS[:1]


def test_arrays_are_added_and_replaced(tmp_path):
    file = tmp_path / "gallery" / "a.npz"
    update_arrays(file, {"x": np.arange(3), "y": np.ones((2, 2), np.float16)})
    update_arrays(file, {"x": np.arange(4), "z": np.zeros(1)})
    with np.load(file) as arrays:
        assert set(arrays.files) == {"x", "y", "z"}
        np.testing.assert_array_equal(arrays["x"], np.arange(4))
        assert arrays["y"].dtype == np.float16
    assert [entry.name for entry in file.parent.iterdir()] == ["a.npz"]


# --- a run's seals ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """Two seeds of a sealed run, of three rounds each."""
    write_config(tmp_path, Config.load({"seeds": [0, 1]}))
    for seed in ("seed-0", "seed-1"):
        (tmp_path / seed).mkdir()
        for record in RECORDS:
            append_round(tmp_path / seed, record)
    return tmp_path


def test_a_sealed_run_reads_back(run):
    assert read_config(run) == Config.load({"seeds": [0, 1]})
    assert read_rounds(run / "seed-0") == RECORDS
    assert not edited(run)


def test_lines_are_of_this_run_and_seed_in_this_order(run):
    file = run / "seed-0" / "rounds.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    other = (run / "seed-1" / "rounds.jsonl").read_bytes()
    for content, number in ((other, 1), (lines[0] + other.splitlines(keepends=True)[1], 2),
                            (lines[0].replace(b"0.0", b"0.5") + lines[1], 1),
                            (b'{"round": 0}\n', 1), (lines[0] + b'{"round": 1}\n', 2)):
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"is damaged in line {number} \(its checksum"):
            read_rounds(run / "seed-0")
    file.write_bytes(lines[0])  # rounds may be repeated from any on
    append_round(run / "seed-0", RECORDS[1])
    assert read_rounds(run / "seed-0") == RECORDS[:2]


def test_every_byte_of_a_config_counts(run):
    file = run / "config.yaml"
    whole = file.read_bytes()
    for i in [*range(60), *range(60, len(whole), 37), len(whole) - 1]:
        changed = bytearray(whole)
        changed[i] ^= 1
        file.write_bytes(bytes(changed))
        with pytest.raises(InputError):
            read_rounds(run / f"seed-{read_config(run).seeds[0]}")
    for cut in range(0, len(whole), 29):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"config\.yaml"):
            read_config(run)
