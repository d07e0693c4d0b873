"""`bench data` on pools so small that they take seconds: what it checks, and what it reports."""

import numpy as np
import pytest

from meal_gpu.bench.parts import data
from meal_gpu.bench.result import Result, WrongResultError
from meal_gpu.bench.subjects import cityscapes
from meal_gpu.bench.timing.measure import Effort
from meal_gpu.data.datasets import CITYSCAPES

pytest.importorskip("nvidia.dali")
QUICK = Effort(0.0, 1, 1, 0.0)


@pytest.fixture(scope="module")
def result() -> Result:
    return data.run(QUICK, (data.Case((48, 64), 3, (2, 2)),))


def test_everything_that_is_asked_for_is_measured(result):
    names = [stage.name.removesuffix(" 48x64") for stage in result.stages]
    ways = ("resident", "streamed", "by DALI")
    assert names == ["ingest PNG", "ingest JPEG",
                     *(f"{kind} {way}" for kind in ("images", "raw images", "patches", "raw patches") for way in ways)]
    for name in ("ingest PNG 48x64", "ingest JPEG 48x64"):
        assert {other.name for other in result.stage(name).baselines} == {"Pillow + DataLoader", "Pillow, threads",
                                                                         "torchvision"}
    assert result.stage("patches streamed 48x64").items == 12 * data.REPEATS
    for stage in result.stages[2:]:
        assert {other.name for other in stage.baselines} == {"copying the page cache", "reading the file", data.AGAIN}


def test_decoding_a_part_counts_as_often_as_the_store_holds_it(result):
    """A file's time may not come out as the store's."""
    ingest = result.stage("ingest PNG 48x64")
    by_pillow = next(other for other in ingest.baselines if other.name == "Pillow, threads")
    again = next(other for other in result.stage("raw images streamed 48x64").baselines if other.name == data.AGAIN)
    ratio = again.times.median_ms / by_pillow.times.median_ms
    assert data.REPEATS / 3 < ratio < 3 * data.REPEATS


def test_a_decoder_that_is_fast_and_wrong_fails(monkeypatch, result):
    monkeypatch.setattr(data, "measure_roofs", lambda *_: result.roofs)  # which takes most of a short run
    real = data._torchvision
    monkeypatch.setattr(data, "_torchvision", lambda sample: real(sample) ^ 1)
    with pytest.raises(WrongResultError, match="torchvision differs from Pillow by 1 levels"):
        data.run(QUICK, (data.Case((48, 64), 2),))


@pytest.mark.parametrize(("way", "frames"), [("resident", "HeldFrames"), ("by DALI", "StreamedFrames")])
def test_frames_that_are_fast_and_wrong_fail(monkeypatch, result, way, frames):
    monkeypatch.setattr(data, "measure_roofs", lambda *_: result.roofs)
    kind = getattr(data, frames)
    real = kind.scan
    monkeypatch.setattr(kind, "scan", lambda self, size: ((part, pixels + 1e-6) for part, pixels in real(self, size)))
    monkeypatch.setattr(data, "_decoding", lambda name, *_: result.stage("ingest PNG 48x64"))
    with pytest.raises(WrongResultError, match=f"{way} frames differ"):
        data.run(QUICK, (data.Case((48, 64), 2),))


def test_the_drawn_data_set_is_a_function_of_its_numbers(tmp_path):
    image, ids = cityscapes.picture(3, (64, 128))
    again, _ = cityscapes.picture(3, (64, 128))
    assert np.array_equal(image, again)
    assert not np.array_equal(image, cityscapes.picture(11, (64, 128))[0])  # the same scene, another place and noise
    assert set(np.unique(ids)) <= {0, *(number for number, _ in CITYSCAPES.values())}
