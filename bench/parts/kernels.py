"""``meal-gpu bench kernels``: both kernels against the eager chain and the best torch.compile of it.

Patch entropy stands here: every alternative is compared with the float64 reference before it is timed. The confusion
counts are those of `counting`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from meal_gpu.kernels import cost, patch_entropy, reference
from meal_gpu.planning.roofline import Roofs, Work

from ..baselines.entropy import full_resolution, logsumexp_form, upsample
from ..result import Baseline, Result, Stage, WrongResultError, baseline, stage
from ..timing.measure import CPU, Calibration, Effort, enough_copies, interleaved, rotating
from ..timing.memory import peak
from ..timing.roofs import card, measure_roofs
from . import counting
from .counting import Counting

EAGER, OURS = "eager chain", "meal_gpu.kernels"
MAX_ERROR = 1e-5  # relative, of a patch sum, for an alternative to be timed
KERNEL_EFFORT = Effort(4.0, 5, 30, 1.0)
Alternative = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Logits [B, C, h, w] of a dtype, upsampled to size, summed over grid."""

    name: str
    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    grid: tuple[int, int]
    dtype: str = "float32"

    def logits(self, device: str | torch.device, seed: int = 0) -> Tensor:
        """Seeded random logits."""
        x = 3 * torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))
        return x.to(device, getattr(torch, self.dtype))

    def work(self) -> Work:
        counts = cost.patch_entropy(self.shape, self.size, self.grid, item_bytes=getattr(torch, self.dtype).itemsize)
        # Its additions run beside the exponentials on other units, and not as products: only the latter bound it.
        return Work(bytes=counts.bytes_moved, exps=counts.exps)


CASES = (
    Case("Cityscapes image", (1, 19, 256, 512), (1024, 2048), (4, 4)),
    Case("64 CamVid patches", (64, 11, 23, 30), (90, 120), (1, 1)),
)
CUDA_CASES = (
    Case("16 images 512x1024", (16, 19, 128, 256), (512, 1024), (4, 4), "bfloat16"),
    Case("8 images 1024x2048", (8, 19, 256, 512), (1024, 2048), (4, 4), "bfloat16"),
)
"""A GPU besides scores batches, in its network's precision: a single image is over before it is busy."""


def alternatives(case: Case) -> dict[str, Alternative]:
    """The eager chain, several ways to compile it, and the kernel."""

    def chain(formula: Callable[[Tensor, tuple[int, int]], Tensor], x: Tensor) -> Tensor:
        return formula(upsample(x, case.size), case.grid)

    torch._dynamo.reset()
    compiled = {
        formula.__name__: torch.compile(formula, dynamic=False) for formula in (full_resolution, logsumexp_form)
    }
    whole = {
        formula.__name__: torch.compile(partial(chain, formula), dynamic=False)
        for formula in (full_resolution, logsumexp_form)
    }
    return {
        EAGER: lambda x: chain(full_resolution, x),
        "compiled": lambda x: compiled["full_resolution"](upsample(x, case.size), case.grid),
        "compiled log S-T/S": lambda x: compiled["logsumexp_form"](upsample(x, case.size), case.grid),
        "compiled all": whole["full_resolution"],
        "compiled all log S-T/S": whole["logsumexp_form"],
        OURS: lambda x: patch_entropy(x, case.size, case.grid),
    }


def run_case(case: Case, roofs: Roofs, effort: Effort, device: torch.device, calibration: Calibration) -> Stage:
    """Check and time one case.

    Raises
    ------
    WrongResultError
        If the kernel is not within MAX_ERROR of the reference.
    """
    n_bytes = case.logits("cpu").nbytes
    inputs = [case.logits(device, seed) for seed in range(enough_copies(n_bytes, device))]
    expected = reference.patch_entropy(inputs[0], case.size, case.grid)[0]
    calls, errors = alternatives(case), {}
    with torch.inference_mode():
        for name, call in calls.items():
            errors[name] = float(((call(inputs[0]).double().cpu() - expected).abs() / expected).max())
        if not errors[OURS] <= MAX_ERROR:
            raise WrongResultError(f"{case.name}: the kernel's relative error is {errors[OURS]:.1e}, more than "
                                   f"{MAX_ERROR:.0e}")
        right = {name: call for name, call in calls.items() if errors[name] <= MAX_ERROR}
        with peak(device) as memory:
            calls[OURS](inputs[0])
        timings = interleaved({name: rotating(call, inputs) for name, call in right.items()}, effort, device,
                              calibration)
    checked = f"relative error of a patch sum against float64, at most {MAX_ERROR:.0e}"
    others = [baseline(name, timings[OURS], timings[name], errors[name], checked) if name in right else
              Baseline(name=name, times=None, error=errors[name], checked=checked, note="not timed: too inexact")
              for name in calls if name != OURS]
    return stage(case.name, case.shape[0] * case.grid[0] * case.grid[1], "patches", timings[OURS], roofs, case.work(),
                 memory, baselines=tuple(others), note=f"{case.dtype} {list(case.shape)} → {list(case.size)}; relative "
                 f"error {errors[OURS]:.0e}")


def run(effort: Effort = KERNEL_EFFORT, cases: Sequence[Case | Counting] | None = None, device: torch.device = CPU,
        done: Callable[[Stage], None] = lambda stage: None) -> Result:
    """Measure the roofs and all cases: `CASES` if none are given, and on CUDA `CUDA_CASES` besides.

    ``done`` is called with each as it is measured.
    """
    if cases is None:
        cases = (*CASES, *counting.CASES)
        if device.type == "cuda":
            cases = (*cases, *CUDA_CASES, *counting.CUDA_CASES)
    roofs, calibration, stages = measure_roofs(device, torch.float32), Calibration(device), []
    for case in cases:
        of_kind = counting.run_case if isinstance(case, Counting) else run_case
        stages.append(of_kind(case, roofs, effort, device, calibration))  # type: ignore[arg-type]
        done(stages[-1])
    return Result(part="kernels", subject="the kernels", settings={"cases": [asdict(case) for case in cases]},
                  machine=card(), device=str(device), roofs=roofs, stages=tuple(stages))
