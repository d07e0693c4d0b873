"""Somebody who knows the truth, asked through each tool, gives the queries of `oracle: simulated`, to the bit."""

from pathlib import Path

import numpy as np
import pytest
from annotators import TOOLS, items_of
from PIL import Image
from tiny import tiny_config

from meal_gpu import LabelsMissingError, resume, run
from meal_gpu.data.datasets import open_dataset
from meal_gpu.journal import read_journal
from meal_gpu.labelling.adding import add
from meal_gpu.records import read_rounds

KEYS = {"query.strategy": "entropy", "query.rounds": 1, "query.n_query": 3, "train.epochs": 1, "train.final_epochs": 1}


def outcome(directory: Path) -> list[dict]:
    """All of the rounds but their times."""
    return [{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes")}
            for record in read_rounds(directory / "seed-0")]


def truth_of(config):
    """Masks as files, in the pixels of their images."""
    dataset = open_dataset(config.data)
    files = {sample.name: sample.mask for sample in dataset.train}
    return lambda name: dataset.to_class[np.array(Image.open(files[name]))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("simulated")


@pytest.fixture(scope="module")
def simulated(place):
    """The scenes are larger than what the network sees, and not by a whole number."""
    drawn = tiny_config(place, **KEYS)
    dataset = open_dataset(drawn.data)
    root = place / "scenes"
    for split, samples in (("", dataset.train), ("val_", dataset.val)):
        for sample in samples:
            for folder, file, how in (("images", sample.image, Image.Resampling.BILINEAR),
                                      ("masks", sample.mask, Image.Resampling.NEAREST)):
                (root / f"{split}{folder}").mkdir(parents=True, exist_ok=True)
                image = Image.open(file)
                size = round(image.width * 1.3), round(image.height * 1.7)
                image.resize(size, how).save(root / f"{split}{folder}" / file.name)
    keys = {**KEYS, "data.dataset": "folder", "data.root": str(root), "data.class_names": list(dataset.class_names)}
    config = tiny_config(place, **keys)
    return keys, config, outcome(run(config, place / "simulated"))


@pytest.mark.parametrize("tool", TOOLS)
def test_a_simulated_annotator_gives_the_same_queries(simulated, place, tmp_path, tool):
    keys, config, expected = simulated
    people = tiny_config(place, **keys, **{"query.oracle": "people", "data.masks": None})
    truth, directory = truth_of(config), tmp_path / "run"
    for k in range(2):
        with pytest.raises(LabelsMissingError):
            resume(directory) if k else run(people, directory)
        folder, out = directory / "seed-0" / "to-label" / f"round-{k:02d}", tmp_path / f"out-{k}"
        out.mkdir()
        news, _ = add(directory, TOOLS[tool](folder, truth, out))
        assert [line.status for line in news.taken] == ["labelled"] * len(items_of(folder))
        assert all(line.pixels.prediction + line.pixels.changed == 0 for line in news.taken) == (k == 0)
    resume(directory)
    assert outcome(directory) == expected
    assert len(read_journal(directory / "seed-0")) == sum(len(record["queried"]) for record in expected)
