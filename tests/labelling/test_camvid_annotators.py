"""CamVid's masks sent through each tool are, to the pixel, what `oracle: simulated` reveals."""

import numpy as np
import pytest
import torch
from annotators import TOOLS
from camvid import thinned
from PIL import Image

from meal_gpu.config import Config
from meal_gpu.data.datasets import open_dataset
from meal_gpu.data.ingest import ingest
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.errors import LabelsMissingError
from meal_gpu.labelling.adding import add
from meal_gpu.labelling.people import PeopleOracle
from meal_gpu.records import write_config

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
