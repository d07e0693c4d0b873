"""A run that waits for the labels of its first round, made without training anything."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.config import Config
from meal_gpu.data.datasets import open_dataset
from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.labelling.people import PeopleOracle
from meal_gpu.records import write_config

SIZE = (40, 60)
PATCHES = torch.tensor([5, 0, 3])  # (image 1, row 0, col 1), (image 0, 0, 0), (image 0, 1, 1)
CLASSES = ["road", "tree", "car"]


@dataclass
class Waiting:
    """A run of three images of 40 x 60, whose network sees 20 x 32 in a grid of 2 x 2."""

    directory: Path
    config: Config
    truth_: dict[str, np.ndarray]
    patches: torch.Tensor

    @property
    def seed(self) -> Path:
        return self.directory / "seed-0"

    @property
    def folder(self) -> Path:
        return self.seed / "to-label" / "round-00"

    @property
    def items(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "query.json").read_text())["items"]

    def truth(self, name: str) -> np.ndarray:
        return self.truth_[name]

    def oracle(self, **about: Any) -> PeopleOracle:
        dataset = open_dataset(self.config.data)
        return PeopleOracle(self.seed, dataset.train, self.config.data.tiling(), dataset.rules(self.config.data),
                            **about)

    def add(self, *words: object) -> tuple[int, str]:
        """The exit code of `meal-gpu labels add`, and what it said."""
        return self.call("labels", "add", self.directory, *words)

    def call(self, *words: object) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, list(map(str, words)))
        if isinstance(result.exception, InputError):  # `endings` makes exit code 2 of it
            return 2, str(result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result.exit_code, result.output

    def files(self) -> dict[str, bytes]:
        """All that the run holds, but for locks."""
        return {str(path.relative_to(self.directory)): path.read_bytes()
                for path in sorted(self.directory.rglob("*")) if path.is_file() and ".lock" not in path.name}

    def labels(self) -> torch.Tensor:
        return self.oracle().label(0, PATCHES)


@pytest.fixture
def waiting(tmp_path, monkeypatch) -> Waiting:
    monkeypatch.setattr("meal_gpu.records.secrets.token_hex", lambda n: "feedface" * (n // 4))  # for `exports`
    draw, truth = np.random.default_rng(0), {}
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(draw.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
        blocks = draw.choice([0, 1, 2, 255], (8, 12)).astype(np.uint8)
        truth[name] = blocks.repeat(5, 0).repeat(5, 1)
    config = Config.load({
        "seeds": [0], "query": {"oracle": "people"}, "data": {
            "dataset": "folder", "root": str(tmp_path), "masks": None, "val_images": None, "class_names": CLASSES,
            "image_size": [20, 32], "grid": [2, 2], "store": str(tmp_path / "store")}})
    found = Waiting(tmp_path / "run", config, truth, PATCHES)
    write_config(found.directory, config)
    (found.seed / "gallery").mkdir(parents=True)
    predicted = np.zeros((3, 10, 16), np.uint8)
    predicted[:, :, 8:] = 1
    np.savez(found.seed / "gallery" / "round-00.npz", ids=PATCHES.numpy(), prediction=predicted)
    with pytest.raises(LabelsMissingError):
        found.oracle().label(0, PATCHES)
    return found
