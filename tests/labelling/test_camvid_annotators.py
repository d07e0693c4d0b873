"""CamVid's masks sent through each tool are, to the pixel, what `oracle: simulated` reveals, and train the same rounds.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from annotators import TOOLS
from camvid import thinned
from PIL import Image

from meal_gpu import resume, run
from meal_gpu.config import Config
from meal_gpu.data.datasets import open_dataset
from meal_gpu.data.ingest import ingest
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.errors import LabelsMissingError
from meal_gpu.labelling.adding import add
from meal_gpu.labelling.people import PeopleOracle
from meal_gpu.records import read_rounds, write_config

pytestmark = pytest.mark.camvid
IDS = torch.tensor([10, 0, 47, 19, 5, 33])


@pytest.mark.parametrize("size", [(360, 480), (250, 333)])
def test_masks_come_back_to_the_pixel(camvid_root, tmp_path, size):
    root = thinned(camvid_root, tmp_path / "camvid", 150)
    config = Config.load({"seeds": [0], "query": {"oracle": "people"}, "data": {
        "dataset": "camvid", "root": str(root), "image_size": size, "grid": [4, 4], "store": str(tmp_path / "store")}})
    dataset, grid = open_dataset(config.data), config.data.tiling()
    expected = SimulatedOracle(ingest(config.data).train.masks, grid).label(0, IDS)
    files = {sample.name: sample.mask for sample in dataset.train}
    for tool, answer in TOOLS.items():
        place = tmp_path / tool
        seed = place / "seed-0"
        seed.mkdir(parents=True)
        write_config(place, config)
        oracle = PeopleOracle(seed, dataset.train, grid, dataset.rules(config.data))
        with pytest.raises(LabelsMissingError):
            oracle.label(0, IDS)
        out = tmp_path / f"out {tool}"
        out.mkdir()
        add(place, answer(seed / "to-label" / "round-00",
                          lambda name: dataset.to_class[np.array(Image.open(files[name]))], out))
        assert torch.equal(oracle.label(0, IDS), expected), tool


def outcome(directory: Path) -> list[dict]:
    """All of the rounds but their times."""
    return [{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes")}
            for record in read_rounds(directory / "seed-0")]


def test_rounds_by_way_of_a_tool_are_those_of_the_simulation(camvid_root, weights_file, tmp_path):
    """Trained, evaluated and asked for on real images: every number of every round, to the bit."""
    root = thinned(camvid_root, tmp_path / "camvid", 150)

    def config(oracle: str) -> Config:
        return Config.load("camvid", [
            f"data.root={root}", f"model.weights={weights_file}", f"data.store={tmp_path / 'store'}", "seeds=[0]",
            "device=cpu", "data.image_size=[180, 240]", "query.strategy=entropy", "query.rounds=1",
            "query.n_initial_images=1", "query.n_query=4", "train.epochs=1", "train.final_epochs=1",
            f"query.oracle={oracle}"])

    simulated = outcome(run(config("simulated"), tmp_path / "simulated"))
    people, dataset, out = config("people"), open_dataset(config("people").data), tmp_path / "people"
    files = {sample.name: sample.mask for sample in dataset.train}
    for k in range(2):
        with pytest.raises(LabelsMissingError):
            resume(out) if k else run(people, out)
        answers = tmp_path / f"answers {k}"
        answers.mkdir()
        add(out, TOOLS["Label Studio"](out / "seed-0" / "to-label" / f"round-{k:02d}",
                                       lambda name: dataset.to_class[np.array(Image.open(files[name]))], answers))
    resume(out)
    assert outcome(out) == simulated
    assert [record["n_labelled"] for record in simulated] == [16, 20]
    assert all(record["miou"] is not None and "stop_set" in record for record in simulated)
