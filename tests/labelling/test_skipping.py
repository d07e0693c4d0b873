"""A run in which people skip patches: others are asked for by the network that asked for these, and it goes on."""

import json

import numpy as np
import pytest
import torch
from annotators import index_folder
from PIL import Image
from tiny import tiny_config

from meal_gpu import LabelsMissingError, resume, run
from meal_gpu.data.datasets import open_dataset
from meal_gpu.engine.acquire import acquire
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.learning import learn, learn_members
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.engine.outputs import ids_of
from meal_gpu.labelling.adding import add, skip
from meal_gpu.records import read_rounds
from meal_gpu.report import load_run
from meal_gpu.timing import StageClock


def items(folder):
    return json.loads((folder / "query.json").read_text())["items"]


def wait(directory, config=None):
    with pytest.raises(LabelsMissingError) as waiting:
        run(config, directory) if config else resume(directory)
    return waiting.value


def others_of(config, directory):
    """What an uninterrupted run asks for after what this one was given first."""
    experiment, first = prepare(config), read_rounds(directory / "seed-0")[0]
    pool, ids = experiment.new_pool(), ids_of(first["queried"])
    pool.reveal(ids, SimulatedOracle(experiment.stores.train.masks, experiment.grid).label(0, ids))
    pool.withhold(torch.tensor(first["skipped"]))
    clock = StageClock(torch.device("cpu"))
    model, _ = learn(experiment, pool, 0, 0, clock)
    return acquire(experiment, pool, model, 0, 0, clock, learn_members(experiment, pool, 0, 0, clock)).ids.tolist()


@pytest.mark.parametrize(("kept", "strategy"), [(True, "entropy"), (False, "entropy"), (True, "ensemble")])
def test_a_run_goes_on_with_others(tmp_path, kept, strategy):
    """Also where the network was not kept: it is trained again, and asks for the same. So is an ensemble always."""
    config = tiny_config(tmp_path, **{"query.oracle": "people", "query.strategy": strategy, "query.rounds": 2,
                                      "query.members": 2,
                                      "query.n_query": 3, "train.epochs": 1, "train.final_epochs": 1})
    dataset, directory = open_dataset(config.data), tmp_path / "run"
    files = {sample.name: sample.mask for sample in dataset.train}
    rounds = directory / "seed-0" / "to-label"

    def label(folder):
        (tmp_path / folder.name).mkdir()
        add(directory, index_folder(folder, lambda name: dataset.to_class[np.array(Image.open(files[name]))],
                                    tmp_path / folder.name))

    wait(directory, config)
    first = items(rounds / "round-00")
    label(rounds / "round-00")
    skip(directory, [first[0]["id"], first[3]["file"]])
    assert wait(directory).directory == rounds / "round-00-more-1" / "masks"
    begun = {item["image"] for item in first}
    others = items(rounds / "round-00-more-1")
    assert len(others) == 2
    assert {item["image"] for item in others}.isdisjoint(begun)
    label(rounds / "round-00-more-1")

    wait(directory)
    asked = items(rounds / "round-01")
    label(rounds / "round-01")
    skip(directory, [asked[1]["id"]])
    if not kept:
        (directory / "seed-0" / "model.safetensors").unlink()
    assert wait(directory).missing == 1
    (other,) = items(rounds / "round-01-more-1")
    if strategy == "entropy":
        scores = [item["score"] for item in [*asked, other]]
        assert scores == sorted(scores, reverse=True)  # the next best
    else:  # four at once would have been these
        whole = tiny_config(tmp_path, **{"query.strategy": strategy, "query.rounds": 2, "query.n_query": 4,
                                         "query.members": 2, "train.epochs": 1, "train.final_epochs": 1})
        assert others_of(whole, directory) == [item["patch"] for item in [*asked, other]]
    assert other["prediction_sha256"]
    # That is skipped too.
    skip(directory, [other["id"]])
    assert wait(directory).missing == 1
    (third,) = items(rounds / "round-01-more-2")
    assert strategy != "entropy" or third["score"] <= other["score"]
    label(rounds / "round-01-more-2")
    wait(directory)
    label(rounds / "round-02")
    resume(directory)

    records = read_rounds(directory / "seed-0")
    assert [record.get("skipped") for record in records] == [
        sorted([first[0]["patch"], first[3]["patch"]], key=[item["patch"] for item in first].index),
        [asked[1]["patch"], other["patch"]], None]
    assert [len(record["queried"]) for record in records] == [len(first), 3, 3]
    assert [patch["id"] for patch in records[1]["queried"]] == [asked[0]["patch"], asked[2]["patch"], third["patch"]]
    everything = [patch["id"] for record in records for patch in record["queried"]]
    skipped = [patch for record in records for patch in record.get("skipped", [])]
    assert len(set(everything)) == len(everything)
    assert set(everything).isdisjoint(skipped)
    with np.load(directory / "seed-0" / "gallery" / "round-01.npz") as gallery:
        assert gallery["ids"].tolist() == [patch["id"] for patch in records[1]["queried"]]
        assert len(gallery["truth"]) == len(gallery["image"]) == 3
    assert load_run(directory).seeds
    resume(directory)  # of a finished run: read again, and nothing is asked
    assert read_rounds(directory / "seed-0") == records
