"""``meal-gpu bench scale``: how time and memory of the stages grow with the pool, the classes and the images' size.

Images are noise: no stage's time depends on what is in them. One size is varied at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from meal_gpu.config import Config, QueryConfig
from meal_gpu.data.frames import HeldFrames
from meal_gpu.grid import Grid
from meal_gpu.kernels import patch_entropy
from meal_gpu.machine.backend import Backend, resolve
from meal_gpu.network.features import Features, batch_pixels, images_per_batch
from meal_gpu.network.model import DeepLabV3Plus
from meal_gpu.planning.network_cost import Network
from meal_gpu.planning.roofline import Roofs, Work
from meal_gpu.stages.embed import fit
from meal_gpu.strategies.select import PoolView, represent

from ..result import Growth, Result, Stage, stage
from ..subjects.ground import maps_of, read_all
from ..timing.measure import Calibration, Effort, interleaved
from ..timing.memory import peak
from ..timing.roofs import card, measure_roofs

POOLS = (1_000, 10_000, 100_000)
CLASSES = (11, 19)
SIZES = ((90, 120), (180, 240), (360, 480), (720, 960))
SMALL = (128, 176)
"""Images of the growing pool: 16 patches of 32 × 44, so that 100,000 patches pass in a minute."""
_LEAST_ADDED = 4 * 2**20
"""Memory below this is noise of the allocator, and is not fitted."""


@dataclass(frozen=True)
class Point:
    """One size of a pool that is to be timed."""

    n_images: int
    size: tuple[int, int]
    classes: int


Calls = dict[str, tuple[int, Callable[[], object], Work]]
"""Stage -> patches, call, work."""


def run(config: Config, effort: Effort, pools: Sequence[int] = POOLS, classes: Sequence[int] = CLASSES,
        sizes: Sequence[tuple[int, int]] = SIZES, umap_to: int = 10_000,
        tell: Callable[[str], None] = lambda doing: None) -> Result:
    """Measure all sizes; the stages of the result are those of the largest pool.

    ``umap_to``: UMAP is fitted to pools of up to so many patches (umap-learn takes minutes for 100,000). ``tell`` hears
    what is being measured.
    """
    config = config.revised("data", context="image")
    backend = resolve(config)
    tell("measuring the machine's roofs")
    roofs, calibration = measure_roofs(backend.device, backend.dtype), Calibration(backend.device)
    cells = config.data.tiling().cells
    torch.manual_seed(0)
    plain = config.model.without_weights
    models = {c: DeepLabV3Plus(c, plain).to(backend.device).eval() for c in classes}
    on_meta = {c: Network.of(config, c, backend.dtype) for c in classes}

    def measure(point: Point, extra: bool) -> list[Stage]:
        grid = Grid(*config.data.grid, *point.size)
        network = replace(on_meta[point.classes], grid=grid, batch=images_per_batch(grid, batch_pixels(backend)))
        calls = _calls(config, backend, point, models[point.classes], network, umap_to if extra else 0)
        height, width = point.size
        made = []
        for name, call in calls.items():
            tell(f"measuring {name}: {point.n_images:,} images of {height} × {width}, {point.classes} classes")
            made.append(_measured(name, *call, roofs, effort, backend.device, calibration))
        return made

    grown = [measure(Point(max(1, round(n / cells)), SMALL, classes[0]), True) for n in pools]
    # All three passes take as many images, so that one size alone is varied.
    wide = [measure(Point(8, SMALL, c), False) for c in classes]
    large = [measure(Point(2, size, classes[0]), False) for size in sizes]
    growth = [*fits("patches", pools, grown), *fits("classes", classes, wide),
              *fits("pixels of an image", [height * width for height, width in sizes], large)]
    return Result(
        part="scale", subject=f"{config.model.backbone}, {pools[0]:,} to {pools[-1]:,} patches of noise",
        settings={"pools": list(pools), "classes": list(classes), "sizes": [list(size) for size in sizes],
                  "umap_to": umap_to, "backbone": config.model.backbone, "precision": str(backend.dtype)},
        machine=card(), device=backend.device.type, roofs=roofs, stages=tuple(grown[-1]), growth=tuple(growth),
        notes=(f"UMAP was fitted up to {umap_to:,} patches.",))


def _calls(config: Config, backend: Backend, point: Point, model: DeepLabV3Plus, network: Network,
           umap_to: int) -> Calls:
    grid = network.grid
    patches = point.n_images * grid.cells
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (point.n_images, *point.size, 3), np.uint8)).to(backend.device)
    frames = HeldFrames.of(images, grid, "image", backend.device)
    features, n = Features.of(frames, model, backend, True), frames.count

    @torch.no_grad()
    def forward() -> Tensor:
        with backend.autocast():
            for pair in maps_of(features, model):
                logits = model.logits(*pair)
        return logits

    @torch.no_grad()
    def vectors() -> Tensor:
        return torch.cat([features.patch_vectors(high) for _, high in maps_of(features, model)])[:patches]

    logits = forward()

    def entropy() -> None:
        for _ in range(-(-n // len(logits))):
            patch_entropy(logits, point.size, (grid.rows, grid.cols))

    view = _view(rng.random(patches, np.float32), grid.cells, backend.device)
    candidates = view.most_uncertain(200)
    found = vectors()
    points = found[candidates][:, :2].contiguous()
    calls: Calls = {
        "gather": (patches, lambda: read_all(frames), Work(bytes=(1 + 4) * n * grid.height * grid.width * 3)),
        "features": (patches, lambda: Features.of(frames, model, backend, True), network.features(n)),
        "vectors": (patches, vectors, network.vectors(n)),
        "forward": (patches, forward, network.forward(n)),
        "patch_entropy": (patches, entropy, network.entropy(n)),
        "top-k": (patches, lambda: view.most_uncertain(200), Work(bytes=patches * 5, dispatches=10)),
        "seeding": (patches, lambda: represent(points, min(32, len(points)), view), Work(dispatches=32 * 15)),
    }
    if 15 < patches <= umap_to:
        calls["UMAP fit"] = patches, lambda: fit(found, config.umap, 0, backend.umap), Work()
    return calls


def _view(score: np.ndarray, cells: int, device: torch.device) -> PoolView:
    ids = torch.arange(len(score), device=device)
    free = torch.ones(len(score), dtype=torch.bool, device=device)
    uniforms = torch.rand(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    return PoolView(image=ids // cells, cell=ids % cells, free=free, n_free=len(score), labelled=~free,
                    query=QueryConfig(), score=torch.from_numpy(score).to(device), uniforms=lambda n: uniforms[:n])


def _measured(name: str, patches: int, call: Callable[[], object], work: Work, roofs: Roofs, effort: Effort,
              device: torch.device, calibration: Calibration) -> Stage:
    with peak(device) as memory:
        call()
    timing = interleaved({name: call}, effort, device, calibration)[name]
    return stage(name, patches, "patches", timing, roofs, work, memory)


def fits(over: str, sizes: Sequence[float], points: Sequence[Sequence[Stage]]) -> list[Growth]:
    """The growth of every stage that was measured at two sizes at least."""
    found = []
    for name in dict.fromkeys(one.name for stages in points for one in stages):
        at = [(size, one) for size, stages in zip(sizes, points, strict=True) for one in stages if one.name == name]
        if len(at) < 2:
            continue
        seconds = [one.times.median_ms / 1e3 for _, one in at]
        added = [one.peak.host_added_bytes or 0 for _, one in at]
        across = [size for size, _ in at]
        found.append(Growth(
            stage=name, over=over, sizes=tuple(across), seconds=tuple(seconds), host_bytes=tuple(added),
            exponent=exponent(across, seconds),
            memory_exponent=exponent(across, added) if min(added) > _LEAST_ADDED else None))
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """e of ``value ~ size ** e``, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
