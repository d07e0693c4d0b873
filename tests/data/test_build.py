"""A build survives kills, full disks and company."""

import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import Configure, change, change_mask, check, refused

from meal_gpu.config import DataConfig
from meal_gpu.data.ingest import ingest
from meal_gpu.errors import InputError

# Forked from a process that has imported everything and started no thread: quick, and safe with DALI's threads.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["meal_gpu.data.ingest", "meal_gpu.data.decode", "meal_gpu.data.dali"])


def _lines(store: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in store.glob("*train*.partial/journal.jsonl"))


def test_kill_9_at_any_moment_then_finishing(config: Configure, caplog: pytest.LogCaptureFixture) -> None:
    data = config(n=40, size=(240, 320))
    assert data.store is not None
    seen = []
    for wanted in (2, 9, 20, 33):
        process = FORK.Process(target=ingest, args=(data,))
        process.start()
        while process.is_alive() and _lines(data.store) < wanted:
            time.sleep(0.0005)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen.append((process.exitcode, _lines(data.store)))
        assert not list(data.store.glob("*train*/manifest.json"))  # no half-built store looks like a whole one
    assert all(code == -signal.SIGKILL for code, _ in seen)
    assert [lines for _, lines in seen] == sorted(lines for _, lines in seen)
    with caplog.at_level(logging.INFO, "meal_gpu"):
        check(ingest(data).train, data)
    assert f"{seen[-1][1] - 1} of 40 images are there" in caplog.text


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_left_of_a_build_the_next_one_is_right(config: Configure, data: st.DataObject) -> None:
    """Lost tails, torn lines and changed bytes, in the journal and in the pixels, as after a power cut."""
    configured = config(n=6, n_val=1)
    assert configured.root is not None
    assert configured.store is not None
    shutil.rmtree(configured.store, ignore_errors=True)
    bad = configured.root / "train" / "seq_00005.png"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    refused(configured)
    bad.write_bytes(good)
    (partial,) = configured.store.glob("*train*.partial")
    for file in sorted(partial.iterdir()):
        content = bytearray(file.read_bytes())
        harm = data.draw(st.sampled_from(["none", "cut", "flip", "zero"]), label=file.name)
        at = data.draw(st.integers(0, len(content) - 1), label="at")
        if harm == "cut":
            content = content[:at]
        elif harm == "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        elif harm == "zero":
            content[at:] = bytes(len(content) - at)
        file.write_bytes(content)
    check(ingest(configured).train, configured)


def test_a_half_built_store_of_another_listing_is_not_continued(config: Configure) -> None:
    data = config(n=6)
    assert data.root is not None
    (data.root / "train" / "seq_00005.png").write_bytes(b"")
    refused(data)
    for i in (0, 5):
        (data.root / "train" / f"seq_0000{i}.png").unlink()
        (data.root / "trainannot" / f"seq_0000{i}.png").unlink()
    check(ingest(data).train, data)


def test_a_source_that_changes_between_kill_and_resume_is_read_again(config: Configure) -> None:
    data = config(n=6)
    assert data.root is not None
    bad = data.root / "train" / "seq_00005.png"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    refused(data)
    bad.write_bytes(good)
    change(data.root)
    change_mask(data.root)
    check(ingest(data).train, data)


def _inode(data: DataConfig, queue: Any) -> None:
    store = ingest(data).train
    store.verify()
    queue.put((store.path / "images.u8").stat().st_ino)


def test_three_processes_at_once(config: Configure) -> None:
    data = config(n=30, size=(120, 160))
    queue = FORK.Queue()
    processes = [FORK.Process(target=_inode, args=(data, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len({queue.get() for _ in processes}) == 1  # built once
    check(ingest(data).train, data)


def test_too_small_a_disk_is_noticed_before_anything_is_decoded(config: Configure, tmp_path: Path) -> None:
    data = config(n=4)
    side = int((shutil.disk_usage(tmp_path).free / 4) ** 0.5) // 4 * 4 + 4000  # 4 images of 4 bytes per pixel
    message = refused(data.model_copy(update={"image_size": (side, side)}))
    assert f"No space for decoded images in {tmp_path / 'store'}" in message
    assert f"needs {side * side * 16 / 1e6:,.1f} MB" in message
    assert "data.store" in message


def _limited(data: DataConfig, limit: int, queue: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        ingest(data)
    except InputError as error:
        queue.put(str(error))


def test_no_more_room_in_the_middle_of_a_build(config: Configure, caplog: pytest.LogCaptureFixture) -> None:
    data = config(n=10)
    queue = FORK.Queue()
    process = FORK.Process(target=_limited, args=(data, 24 * 32 * 3 * 6 + 100, queue))
    process.start()
    message = queue.get(timeout=60)
    process.join()
    assert message.startswith("No space for decoded images in")
    with caplog.at_level(logging.INFO, "meal_gpu"):
        check(ingest(data).train, data)
    assert "6 of 10 images are there" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "meal-gpu-test", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_while_building(small_disk: Path, config: Configure) -> None:
    data = config(n=200, n_val=1, store=small_disk)  # 614 kB
    filler = small_disk / "filler"

    def fill(stage: str, done: int, total: int) -> None:
        if not filler.exists():
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))

    with pytest.raises(InputError, match=r"No space for decoded images.*\(No space left on device\)"):
        ingest(data, fill)
    assert "No space" in refused(data)  # noticed up front now
    filler.unlink()
    check(ingest(data).train, data)


def test_a_place_that_cannot_be_written(config: Configure, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused(config(store=tmp_path / "file" / "store"))
    assert f"cannot be written below {tmp_path / 'file' / 'store'}" in message
    assert "data.store" in message
