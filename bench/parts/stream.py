"""``meal-gpu bench stream``: a pool that is larger than its budget, from files to scores, and the memory that it takes.

Files in Cityscapes' layout are generated, ingested, and scored by a network under ``data.budget_gb``. What is shown is
the memory of the process: it must not grow with the number of images.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from meal_gpu.grid import Size
from meal_gpu.planning.roofline import Roofs

from ..result import Result, Stage, Times
from ..subjects.cityscapes import write
from ..timing.memory import alone
from ..timing.roofs import card


def run(root: Path, counts: Sequence[int], size: Size, budget_gb: float, tell: Callable[[str], None]) -> Result:
    """Ingest and score pools of the given numbers of images below ``root``; data that is there is kept.

    Each phase runs in a process of its own, of which the highest resident memory is taken; what was resident when
    everything was imported and nothing begun is subtracted for the memory added.
    """
    stages = []
    for n in counts:
        tell(f"drawing {n} images")
        data = write(root / f"{size[0]}x{size[1]}-{n}", n, 2, size)
        for name in ("ingest", "score"):
            tell(f"{name} of {n} images")
            job = {"name": name, "root": str(data), "size": size, "budget_gb": budget_gb}
            seconds, peak = alone("meal_gpu.bench.parts.stream", json.dumps(job))
            stages.append(Stage(name=f"{name} {n}", items=n, unit="images", times=Times(seconds=(seconds,)), peak=peak))
    highest = ", ".join(f"{one.name} {(one.peak.host_bytes or 0) / 1e9:.2f} GB" for one in stages)
    return Result(part="stream", subject=f"a pool of {size[0]} x {size[1]} pixels under a budget of {budget_gb} GB",
                  settings={"counts": list(counts), "size": list(size), "budget_gb": budget_gb}, machine=card(),
                  device="cpu", roofs=Roofs(torch.get_num_threads(), "float32"), stages=tuple(stages),
                  notes=(f"Resident memory of a phase's process at its highest: {highest}.",))


def _phase(name: str, root: str, size: Sequence[int], budget_gb: float) -> tuple[float, int, int]:
    """What runs in the process of its own: seconds, resident bytes before, and at the highest."""
    import shutil
    import time

    from meal_gpu.config import Config
    from meal_gpu.data import dali  # noqa: F401  # imported before the memory is looked at
    from meal_gpu.data.ingest import ingest
    from meal_gpu.engine.experiment import prepare
    from meal_gpu.stages.predict import predict

    from ..timing.memory import resident

    config = Config.load("cityscapes", [
        f"data.root={root}", f"data.store={root}/store", f"data.image_size={list(size)}", "model.weights=none",
        f"data.budget_gb={budget_gb}", "query.rounds=0", "device=cpu"])
    before = resident("VmRSS") or 0
    start = time.perf_counter()
    if name == "ingest":
        shutil.rmtree(Path(root) / "store", ignore_errors=True)
        ingest(config.data)
    else:
        experiment = prepare(config)
        if experiment.placement.images != "streamed" or experiment.placement.cache:
            raise RuntimeError(f"{budget_gb} GB hold this pool: nothing would be streamed")
        model = experiment.new_model(0, 0)
        start = time.perf_counter()
        predict(model, experiment.train.features(model), {"score"}, "entropy", experiment.backend)
    return time.perf_counter() - start, before, resident("VmHWM") or 0


if __name__ == "__main__":
    print(json.dumps(_phase(**json.loads(sys.argv[1]))))
