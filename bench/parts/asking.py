"""``meal-gpu bench query``: what `meal_gpu.query` does with a network's outputs, against the plain loop.

The network is left out: outputs are there before the clock starts. The memory is that of whole calls, with a small
network, on pools that a mapped file holds; it must not grow with the pool.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meal_gpu.grid import Grid, Size
from meal_gpu.kernels import cost, reference
from meal_gpu.library.network import Seen
from meal_gpu.library.passes import Reading, gather
from meal_gpu.planning.roofline import Roofs, Work
from meal_gpu.timing import no_progress

from ..baselines.entropy import plain_loop
from ..result import Result, Stage, Times, WrongResultError, baseline, stage
from ..timing.measure import CPU, Calibration, Effort, interleaved
from ..timing.memory import alone, peak
from ..timing.roofs import card, measure_roofs

MAX_ERROR = 1e-5
"""Relative, of a patch's score."""
EFFORT = Effort(3.0, 5, 30, 0.5)


@dataclass(frozen=True)
class Case:
    """Logits of a pool of ``images`` at ``1 / stride`` of their size, in batches as `meal_gpu.query` asks for them."""

    stride: int
    align_corners: bool
    images: int = 32
    batch: int = 8
    size: Size = (360, 480)
    classes: int = 11
    grid: tuple[int, int] = (4, 4)

    @property
    def name(self) -> str:
        return f"scores, stride {self.stride}{', align_corners' if self.align_corners else ''}"

    @property
    def tiling(self) -> Grid:
        return Grid(*self.grid, *self.size)

    def batches(self, device: torch.device) -> list[Tensor]:
        """Seeded random logits ``[batch, classes, h, w]``."""
        draw, (h, w) = torch.Generator().manual_seed(0), (side // self.stride for side in self.size)
        return [3 * torch.randn(self.batch, self.classes, h, w, generator=draw).to(device)
                for _ in range(self.images // self.batch)]

    def work(self) -> Work:
        h, w = (side // self.stride for side in self.size)
        counts = cost.patch_entropy((self.images, self.classes, h, w), self.size, self.grid, item_bytes=4)
        return Work(bytes=counts.bytes_moved, exps=counts.exps)


CASES = (Case(1, False), Case(4, False), Case(8, False), Case(8, True))
POOLS = (200, 800)
"""Images of the pools whose memory is looked at."""


def run(effort: Effort = EFFORT, cases: Sequence[Case] = CASES, pools: Sequence[int] = POOLS, size: Size = (360, 480),
        device: torch.device = CPU, tell: Callable[[str], None] = lambda doing: None,
        done: Callable[[Stage], None] = lambda stage: None) -> Result:
    """Measure the cases, then the memory of a call on each pool (``size`` is that of its images)."""
    roofs, calibration, stages = measure_roofs(device, torch.float32), Calibration(device), []
    for case in cases:
        tell(case.name)
        stages.append(run_case(case, roofs, effort, device, calibration))
        done(stages[-1])
    for n in pools:
        tell(f"a pool of {n} images")
        stages.append(_whole_call(n, size))
        done(stages[-1])
    added = ", ".join(f"{one.items:,} images {(one.peak.host_added_bytes or 0) / 1e6:.0f} MB"
                      for one in stages[len(cases):])
    note = f"A whole call on a mapped file adds to the memory of its process at its highest: {added}."
    return Result(part="query", subject="scores of meal_gpu.query, network excluded",
                  settings={"cases": [asdict(case) for case in cases], "pools": list(pools), "size": list(size)},
                  machine=card(), device=str(device), roofs=roofs, stages=tuple(stages),
                  notes=(note,) if pools else ())


def run_case(case: Case, roofs: Roofs, effort: Effort, device: torch.device, calibration: Calibration) -> Stage:
    """Check and time one case. Raises `WrongResultError` where a score differs from the float64 reference."""
    batches, tiling = case.batches(device), case.tiling
    reading = Reading(tiling, "entropy", case.align_corners, False)

    def ours() -> Tensor:
        scores = gather((Seen(logits, None) for logits in batches), reading, {"score"}, case.images, no_progress).score
        assert scores is not None
        return scores

    def theirs(at_once: bool) -> Tensor:
        parts = batches if at_once else [image[None] for batch in batches for image in batch]
        return torch.cat([plain_loop(part, case.size, case.grid, case.align_corners).flatten() for part in parts])

    others: dict[str, Callable[[], Tensor]] = {
        "plain loop": partial(theirs, False), "plain loop, batches": partial(theirs, True)}
    expected = reference.patch_entropy(batches[0], case.size, case.grid,
                                       align_corners=case.align_corners)[0].flatten() / tiling.patch_pixels

    def error(call: Callable[[], Tensor]) -> float:
        found = call()[: len(expected)].double().cpu()
        return float(((found - expected).abs() / expected).max())

    errors = {name: error(call) for name, call in {"ours": ours, **others}.items()}
    if not max(errors.values()) <= MAX_ERROR:
        raise WrongResultError(f"{case.name}: relative errors are {errors}, and {MAX_ERROR:.0e} is allowed")
    with torch.inference_mode():
        with peak(device) as memory:
            ours()
        timings = interleaved({"ours": ours, **others}, effort, device, calibration)
    checked = f"relative error of a score against float64, at most {MAX_ERROR:.0e}"
    return stage(case.name, case.images * case.grid[0] * case.grid[1], "patches", timings["ours"], roofs, case.work(),
                 memory, baselines=tuple(baseline(name, timings["ours"], timings[name], errors[name], checked)
                                         for name in others),
                 note=f"{case.images} images {list(case.size)}, {case.classes} classes; relative error "
                      f"{errors['ours']:.0e}")


def _whole_call(n: int, size: Size) -> Stage:
    """In a process of its own, of which the highest resident memory is taken."""
    with tempfile.TemporaryDirectory(prefix="meal-gpu-drawn-") as folder:
        file = Path(folder) / "images.npy"
        images = np.lib.format.open_memmap(file, "w+", np.uint8, (n, *size, 3))
        for i in range(n):
            images[i] = np.random.default_rng(i).integers(0, 256, images.shape[1:], np.uint8)
        images.flush()
        del images
        seconds, added = alone("meal_gpu.bench.parts.asking", str(file))
    return Stage(name=f"call {n}", items=n, unit="images", times=Times(seconds=(seconds,)), peak=added,
                 note="a whole call, network included; once")


def _call(file: str) -> tuple[float, int, int]:
    """What runs in the process of its own: seconds, resident bytes before, and at the highest."""
    import time

    from torch import nn

    from meal_gpu.library.query import query

    from ..timing.memory import resident

    network = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 11, 1))
    images = np.load(file, mmap_mode="r")
    # Of few images once: compiled code and buffers are no memory of the pool's.
    query(network, np.array(images[:16]), (4, 4), 8, features="1", strategy="meal_ft", n_informative=16, progress=False)
    before, start = resident("VmRSS") or 0, time.perf_counter()
    query(network, images, (4, 4), 8, features="1", strategy="meal_ft", n_informative=16, progress=False)
    return time.perf_counter() - start, before, resident("VmHWM") or 0


if __name__ == "__main__":
    print(json.dumps(_call(sys.argv[1])))
