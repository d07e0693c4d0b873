"""Make the runs of `test_equal_runs` in a process of their own, and write down their records: its one argument.

``MEAL_GPU_TEST_INTERRUPT=1`` leaves each run after its first round and goes on with it in another experiment.
"""

import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_config

from meal_gpu.config import Config
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.oracle import SimulatedOracle
from meal_gpu.engine.rounds import run_seed
from meal_gpu.records import read_rounds


class StopHereError(Exception):
    pass


def cells() -> list[dict[str, Any]]:
    """Overrides per run. Two images hold all first patches: a batch repeats them. ``never`` so that they are read."""
    sampled = [("image", "patch"), ("image", "image"), ("patch", "patch")]  # patches have no images to sample
    every = [{"model.freeze_backbone": frozen, "data.context": context, "train.sample": sample,
              "data.placement": placement, "model.cache_features": "auto" if placement == "resident" else "never"}
             for frozen, (context, sample), placement in itertools.product(
                 [True, False], sampled, ["resident", "streamed"])]
    changed = {"train.flip": True, "train.scale": 2.0, "train.colour": 0.4, "train.classmix": 0.5}
    taught = {"train.ema": 0.9, "train.pseudo_labels": 2, "train.pseudo_threshold": 0.2}
    every[-1] |= {"train.schedule": "cosine", "train.optimizer": "adamw", "train.weight_decay": 1e-2,
                  "train.min_steps": 3, **changed, **taught}
    every[2] |= {**changed, **taught, "train.consistency": 1.0}
    every[-4] |= taught
    every[-2] |= {"train.consistency": 1.0}
    for cell in (every[1], every[6]):  # frozen and finetuned
        cell |= {"query.strategy": "ensemble", "query.members": 2}
    if torch.get_num_threads() > 1:  # compiling umap-learn takes longer than all other runs
        every[0]["query.strategy"] = "meal"
    return every


def configured(folder: Path, precision: str, cell: dict[str, Any]) -> Config:
    sample = cell["train.sample"]
    return tiny_config(folder, **{
        "data": {"image_size": [96, 128], "grid": [2, 4], "n_images": 4, "n_val_images": 1},
        "train": {"epochs": 1, "final_epochs": 1, "batch_size": 8 if sample == "patch" else 2},
        "query.strategy": "entropy", "query.rounds": 1, "query.n_initial_images": 2, "query.n_query": 4,
        "model.precision": precision, **cell})


def records(config: Config, directory: Path, interrupt: bool) -> list[dict[str, Any]]:
    """A run's records without times and memory."""
    def stop(record: dict[str, Any]) -> None:
        raise StopHereError

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for observe in [stop, lambda record: None] if interrupt else [lambda record: None]:
        experiment = prepare(config)
        assert experiment.stores.train.masks is not None
        try:
            run_seed(experiment, 0, directory, SimulatedOracle(experiment.stores.train.masks, experiment.grid),
                     observe)
        except StopHereError:
            pass
        finally:
            experiment.close()
    found = read_rounds(directory)
    assert len(found) == 2
    return [{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes")} for record in found]


def main(out: Path) -> None:
    precision, interrupt = os.environ["MEAL_GPU_TEST_PRECISION"], os.environ["MEAL_GPU_TEST_INTERRUPT"] == "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {" ".join(f"{key}={value}" for key, value in cell.items()):
                 records(configured(folder, precision, cell), folder / "seed-0", interrupt) for cell in cells()}
    out.write_text(json.dumps({"threads": torch.get_num_threads(), "runs": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
