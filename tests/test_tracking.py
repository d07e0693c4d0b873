"""Copies of a run's records: what real event files and a real store of MLflow hold, after kills and failures too."""

import logging
import re
from collections import Counter
from pathlib import Path

import pytest
from tiny import tiny_config

from meal_gpu import tracking
from meal_gpu.launch import resume, run
from meal_gpu.records import read_rounds


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """``interrupted(name)``: a run that was killed after two of its three rounds, and has gone on."""
    folder = tmp_path_factory.mktemp("tracked")

    def make(name: str) -> Path:
        config = tiny_config(folder, tracking=[name], **{"query.strategy": "entropy", "train.epochs": 1})
        directory = run(config, folder / name)
        rounds = directory / "seed-0" / "rounds.jsonl"
        rounds.write_bytes(b"".join(rounds.read_bytes().splitlines(keepends=True)[:2]))
        return resume(directory)

    return make


def test_event_files_hold_every_round_once(interrupted):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = interrupted("tensorboard")
    events = EventAccumulator(str(directory / "tensorboard" / "seed-0"), size_guidance={"scalars": 0})
    events.Reload()
    records = read_rounds(directory / "seed-0")
    for name in ("miou", "n_labelled"):
        assert [(one.step, pytest.approx(one.value)) for one in events.Scalars(name)] == [
            (record["round"], record[name]) for record in records]
    assert {f"iou/{name}".replace(" ", "_") for name in records[0]["iou"]} >= {
        tag for tag in events.Tags()["scalars"] if tag.startswith("iou/")}
    assert [one.value for one in events.Scalars("round-00/loss")] == [
        pytest.approx(entry["loss"]) for entry in records[0]["history"]]


def test_mlflow_gets_every_round_once(interrupted, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(None)
    directory = interrupted("mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("meal-gpu")
    [held] = client.search_runs([experiment.experiment_id])
    records = read_rounds(directory / "seed-0")
    for name in ("miou", "n_labelled"):
        history = client.get_metric_history(held.info.run_id, name)
        assert Counter(one.step for one in history) == dict.fromkeys(range(len(records)), 1)
        assert {one.step: pytest.approx(one.value) for one in history} == {
            record["round"]: record[name] for record in records}
    assert held.data.params["query.strategy"] == "entropy"
    assert held.info.status == "FINISHED"


@pytest.mark.parametrize(("error", "said"), [
    (OSError(28, "No space left on device"), r"OSError: \[Errno 28\] No space left"),
    (ImportError("No module named 'tensorboard'"), r"'tensorboard': pip install 'meal-gpu\[tensorboard\]'"),
])
def test_a_tracker_that_fails_stops_no_run_and_is_named_once(tmp_path, monkeypatch, caplog, error, said):
    calls = []

    class Failing(tracking.TensorBoard):
        def __init__(self, *given) -> None:
            calls.append(given)
            raise error

    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", Failing)
    config = tiny_config(tmp_path, tracking=["tensorboard"], **{"query.strategy": "random", "train.epochs": 1})
    with caplog.at_level(logging.WARNING, "meal_gpu"):
        directory = run(config, tmp_path / "run")
    assert len(read_rounds(directory / "seed-0")) == config.query.rounds + 1
    warned = [record.getMessage() for record in caplog.records if "tracking" in record.getMessage()]
    assert len(warned) == len(calls) == 1
    assert re.search(said, warned[0])


def test_a_run_of_before_there_was_tracking_goes_on(tmp_path):
    directory = run(tiny_config(tmp_path, **{"query.strategy": "random", "train.epochs": 1}), tmp_path / "run")
    file = directory / "config.yaml"
    text = file.read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("tracking:", "threads:"))]
    file.write_text("\n".join(lines[1:]) + "\n")
    for rounds in directory.glob("seed-*/rounds.jsonl"):  # as runs had them before there were seals
        lines = rounds.read_bytes().splitlines()
        rounds.write_bytes(b"".join(line.partition(b', "check"')[0] + b"}\n" for line in lines))
    assert resume(directory) == directory
