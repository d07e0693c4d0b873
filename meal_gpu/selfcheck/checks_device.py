"""What only a device can tell, and no reading of sources could settle: part of `meal_gpu.selfcheck.checks`."""

import importlib.util
import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..config import Config
from ..data.frames import HeldFrames, StreamedFrames
from ..data.imagefile import Picture
from ..data.pixels import normalise
from ..grid import Grid
from ..machine import arithmetic
from ..machine.backend import resolve
from ..machine.transfers import Transfers
from ..network.features import Features, batch_pixels, full_batch
from ..network.model import DeepLabV3Plus
from ..planning.sizing import peak_scoring, peak_training
from ..stages.evaluate import evaluate
from ..stages.predict import predict
from ..stages.train import train_epoch
from . import checks_network, outcome
from .outcome import Deviation, Finding, Unavailable

LATE_CYCLES = 40_000_000
"""Of the device's clock, some 20 ms: several batches are asked for meanwhile."""
MEASURED = {"data": {"dataset": "demo", "image_size": [360, 480], "grid": [4, 4]},
            "model": {"weights": "none", "cache_features": "never"}, "device": "cuda"}
"""CamVid's shapes, so that the network's tensors outweigh what libraries take."""


def arithmetic_cuda() -> Finding:
    """float32 is IEEE's in convolutions and products: off from float64 by less than TF32's rounding could be."""
    device = outcome.cuda()
    resolve(Config.load({"device": "auto", "model": {"precision": "float32"}}), embeds=False)
    switches = arithmetic.settled()
    x, weight = (torch.randn(shape, generator=outcome.draw()) for shape in ((2, 64, 32, 48), (64, 64, 3, 3)))
    rows = x.flatten(1)[:, :2048].reshape(64, 64)
    found = {"convolution": (F.conv2d(x.to(device), weight.to(device), padding=1),
                             F.conv2d(x.double(), weight.double(), padding=1)),
             "product": (rows.to(device) @ rows.to(device), rows.double() @ rows.double())}
    numbers = {}
    for name, (here, exact) in found.items():
        numbers[name] = ((here.cpu().double() - exact).abs().max() / exact.std()).item()
        if not numbers[name] <= 2e-5:
            raise Deviation(f"a float32 {name} is off by {numbers[name]:.1e}, as TF32 would be ({switches})", **numbers)
    return f"convolutions off by {numbers['convolution']:.1e} of float64, products by {numbers['product']:.1e}", numbers


def streamed_late() -> Finding:
    """Batches that DALI has handed over are read only when the device has slept through several more."""
    device = outcome.cuda()
    _need_dali()
    images = np.random.default_rng(0).integers(0, 256, (48, 128, 160, 3), np.uint8)
    frames, compared = StreamedFrames(Grid(4, 4, 128, 160), "image", device, images), 0
    for _ in range(2):  # the second pass goes through memory that the first has given back
        stream, late = frames.scan(2), []
        for _ in range(0, len(images), 2):
            torch.cuda._sleep(LATE_CYCLES)
            late.append(next(stream)[1])
        next(stream, None)
        found = torch.cat(late).cpu()
        expected = normalise(torch.from_numpy(images))
        compared += len(found)
        wrong = (found != expected).flatten(1).any(1).sum().item()
        if wrong:
            raise Deviation(f"{wrong} of {len(found)} frames were overwritten before they were read", overwritten=wrong)
    return f"{compared} frames equal to the bit, each read 20 ms late", {"frames": compared}


def jpeg() -> Finding:
    """nvJPEG's pixels against the CPU's, of a file with half the colour resolution, as cameras and phones write it."""
    outcome.cuda()
    _need_dali()
    from ..data.dali import DaliDecoder

    picture = Picture(np.frombuffer(_jpeg(), np.uint8), (96, 160))
    (cpu,), (gpu,) = (DaliDecoder((96, 160), 2, mixed).decode([picture]) for mixed in (False, True))
    off = np.abs(cpu.astype(int) - gpu.astype(int))
    numbers = {"mean_difference": float(off.mean()), "largest_difference": float(off.max()),
               "within_4": float((off <= 4).mean())}
    if not (numbers["mean_difference"] <= 1 and numbers["within_4"] >= 0.99):
        raise Deviation(f"off by {off.mean():.2f} of 255 on average, {off.max()} at most; {(off <= 4).mean():.1%} of "
                        "the values within 4: a store decoded on this GPU is another", **numbers)
    return f"off by {off.mean():.2f} of 255 on average, {off.max()} at most", numbers


def runs_twice() -> Finding:
    """A whole toy run on CUDA, twice, frozen and finetuned: the same queries."""
    outcome.cuda()
    n = 0
    for frozen in (True, False):
        changes = {"query.strategy": "entropy", "model.freeze_backbone": frozen, "model.precision": "auto"}
        first, second = (checks_network._toy_run("cuda", **changes) for _ in range(2))
        same = checks_network._overlap(first, second)
        if first != second:
            raise Deviation(f"the second run has {same:.0%} of the first one's queries ("
                            f"{'frozen' if frozen else 'finetuned'}; {arithmetic.settled()})", overlap=same)
        n += sum(map(len, first))
    return f"{n} patches asked for, twice the same; frozen and finetuned", {"overlap": 1.0, "patches": n}


def memory() -> Finding:
    """The peaks of a batch of scoring and of a step against what `info` says; libraries' workspaces come on top."""
    device = outcome.cuda()
    config = Config.load(MEASURED)
    backend, grid = resolve(config, embeds=False), config.data.tiling()
    model = DeepLabV3Plus(11, config.model).to(device)
    n = full_batch(config.data, batch_pixels(backend))  # a batch as the forecast has it
    images = torch.zeros(n, grid.height, grid.width, 3, dtype=torch.uint8, device=device)
    features = Features.of(HeldFrames.of(images, grid, "image", device), model, backend, cached=False)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    ids = torch.arange(8, device=device) * grid.cells
    labels = torch.zeros(8, grid.patch_height, grid.patch_width, dtype=torch.uint8, device=device)

    def step() -> None:
        train_epoch(model.train(), features, ids, labels, [torch.arange(8)], ids.cpu(), optimiser, backend)

    cases: dict[str, tuple[Callable[[], object], int]] = {
        "scoring": (lambda: predict(model.eval(), features, {"score"}, "entropy", backend),
                    peak_scoring(config, backend, model)),
        "training": (step, peak_training(config, backend, model))}
    numbers: dict[str, float] = {"scoring_images": n}
    for name, (work, said) in cases.items():
        work()  # kernels are chosen, Adam's moments made
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        found = torch.cuda.max_memory_allocated() - before
        numbers |= {f"{name}_bytes": float(found), f"{name}_said_bytes": float(said)}
        if not found <= 1.5 * said + 256e6:
            raise Deviation(f"{name} took {found / 1e9:.2f} GB at its peak, and info says {said / 1e9:.2f}", **numbers)
    return "; ".join(f"{name}: {numbers[f'{name}_bytes'] / 1e9:.2f} GB, said {numbers[f'{name}_said_bytes'] / 1e9:.2f}"
                     for name in cases), numbers


def waits() -> Finding:
    """An evaluation waits for the device once: for its confusion matrix."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with checks_network._toy(device.type) as experiment:
        model = experiment.new_model(0, 0).eval()
        assert experiment.val is not None
        features, masks, n = experiment.val.features(model), experiment.val.masks, len(experiment.class_names)
        evaluate(model, features, masks, n, experiment.backend)  # constants go to the device
        with Transfers() as counted:
            evaluate(model, features, masks, n, experiment.backend)
    places, sends = counted.reads + counted.blocked, sum(counted.sends.values())  # a copy may make the host wait, too
    numbers = {"waits": float(counted.waits), "reads": float(sum(counted.reads.values())), "sends": float(sends)}
    if places != {"evaluate.py: tolist": 1}:
        where = ", ".join(f"{place} x{count}" for place, count in sorted(places.items())) or "no place"
        raise Deviation(f"an evaluation waits for the device at: {where}; at evaluate.py: tolist once was expected",
                        **numbers)
    return f"an evaluation on {device.type} waits once, and sends {sends} times", numbers


CHECKS: dict[str, Callable[[], Finding]] = {
    "arithmetic cuda": arithmetic_cuda, "streamed late": streamed_late, "jpeg cuda": jpeg,
    "two runs cuda": runs_twice, "memory cuda": memory, "waits": waits,
}


# --- what they share --------------------------------------------------------------------------------------------------


def _need_dali() -> None:
    try:
        found = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise Unavailable("NVIDIA DALI is not installed")


def _jpeg() -> bytes:
    """Smooth colours with two hard edges of saturated red and blue."""
    y, x = np.mgrid[0:96, 0:160].astype(float)
    waves = [np.sin(x / 9 + y / 17), np.cos(y / 7), np.sin((x + y) / 23)]
    pixels = np.stack([127 + 100 * wave for wave in waves], 2)
    pixels[30:60, 40:90], pixels[50:80, 100:140] = (220, 30, 40), (20, 60, 230)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90, subsampling=2)
    return file.getvalue()
