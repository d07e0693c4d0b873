"""The confusion kernel in ``meal-gpu bench kernels``: logits and truth → counts, against the chain of operations.

The counts are integers and are compared as such before anything is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from meal_gpu.kernels import confusion_counts, cost
from meal_gpu.planning.roofline import Roofs, Work

from ..baselines.confusion import chain
from ..result import Baseline, Stage, WrongResultError, baseline, stage
from ..timing.measure import Calibration, Effort, enough_copies, interleaved, rotating
from ..timing.memory import peak

OURS = "meal_gpu.kernels"
VOID = 255
ULP_SHARE = 1e-5
"""Of the pixels may have another class where PyTorch adds up in another order: two classes an ulp apart."""
Given = tuple[Tensor, Tensor]
Alternative = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Counting:
    """Logits [B, C, h, w] of a dtype, channels_last as the network gives them, and truth uint8 [B, *size]."""

    name: str
    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    dtype: str = "float32"

    def given(self, device: torch.device, seed: int = 0) -> Given:
        """Seeded logits, and a truth in tiles of 8 x 8 pixels, a tenth of it void."""
        draw, (B, C, _, _), (H, W) = torch.Generator().manual_seed(seed), self.shape, self.size
        logits = (3 * torch.randn(self.shape, generator=draw)).to(getattr(torch, self.dtype))
        tiles = torch.randint(0, C, (B, -(-H // 8), -(-W // 8)), generator=draw, dtype=torch.uint8)
        tiles.view(-1)[::10] = VOID
        truth = tiles.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :H, :W].contiguous()
        return logits.to(device, memory_format=torch.channels_last), truth.to(device)

    def work(self) -> Work:
        counts = cost.confusion(self.shape, self.size, self.size, item_bytes=getattr(torch, self.dtype).itemsize)
        return Work(bytes=counts.bytes_moved, flops=counts.flops)


CASES = (Counting("count 2 images 512x1024", (2, 19, 128, 256), (512, 1024)),
         Counting("count 8 CamVid images", (8, 11, 90, 120), (360, 480)))
CUDA_CASES = (Counting("count 32 of 512x1024", (32, 19, 128, 256), (512, 1024), "bfloat16"),)
"""The batch of an evaluation there."""


def alternatives(case: Counting) -> dict[str, Alternative]:
    """The chain, the chain compiled, and the kernel."""
    torch._dynamo.reset()
    compiled = torch.compile(chain, dynamic=False)
    return {"torch chain": lambda x, truth: chain(x, truth, case.size),
            "compiled chain": lambda x, truth: compiled(x, truth, case.size),
            OURS: lambda x, truth: confusion_counts(x, truth, case.size)}


def allowed(device: torch.device) -> float:
    """Share of pixels that may be counted elsewhere: none where the kernel adds in PyTorch's order, by `kernels`."""
    same_order = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return 0.0 if same_order else ULP_SHARE


def run_case(case: Counting, roofs: Roofs, effort: Effort, device: torch.device, calibration: Calibration) -> Stage:
    """Check and time one case.

    Raises
    ------
    WrongResultError
        If the kernel's counts are not the chain's.
    """
    n_bytes = sum(part.nbytes for part in case.given(torch.device("cpu")))
    inputs = [case.given(device, seed) for seed in range(enough_copies(n_bytes, device))]
    calls, most = alternatives(case), allowed(device)
    with torch.inference_mode():
        expected = calls["torch chain"](*inputs[0])
        pixels = int(expected.sum())

        def elsewhere(counts: Tensor) -> float:
            return float((counts - expected).abs().sum()) / 2 / pixels if counts.sum() == pixels else float("inf")

        errors = {name: elsewhere(call(*inputs[0])) for name, call in calls.items()}
        if not errors[OURS] <= most:
            raise WrongResultError(f"{case.name}: the kernel counts {errors[OURS]:.1e} of the pixels elsewhere than "
                                   f"the torch chain, more than {most:g}")
        right = {name: call for name, call in calls.items() if errors[name] <= ULP_SHARE}
        with peak(device) as memory:
            calls[OURS](*inputs[0])
        timings = interleaved({name: rotating(partial(_on, call), inputs) for name, call in right.items()}, effort,
                              device, calibration)
    checked = f"share of the pixels that are counted elsewhere than the torch chain has them; of the kernel's {most:g}"
    others = [baseline(name, timings[OURS], timings[name], errors[name], checked) if name in right else
              Baseline(name=name, times=None, error=errors[name], checked=checked, note="not timed: other counts")
              for name in calls if name != OURS]
    same = "the torch chain's counts exactly" if errors[OURS] == 0 else f"{errors[OURS]:.0e} of the pixels elsewhere"
    return stage(case.name, case.shape[0], "images", timings[OURS], roofs, case.work(), memory, baselines=tuple(others),
                 note=f"{case.dtype} {list(case.shape)} and truth → counts; {same}")


def _on(call: Alternative, given: Given) -> Tensor:
    return call(*given)
