"""``meal-gpu bench kernels``: the patch-entropy kernel against the eager chain and the best torch.compile of it.

One process, interleaved rounds. Every alternative is compared with the float64 reference before it is timed. Beside the
times stands the machine's own measured roof, and the share of it that each alternative reaches.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from meal_gpu.backend import machine
from meal_gpu.kernels import cost, patch_entropy, reference

from .machine import Roof, measure_roof
from .measure import interleaved

EAGER, OURS = "eager chain", "meal_gpu.kernels"
MAX_ERROR = 1e-5  # relative, of a patch sum, for an alternative to be timed


@dataclass(frozen=True)
class Case:
    """Logits [B, C, h, w] of a dtype, upsampled to size, summed over grid."""

    name: str
    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    grid: tuple[int, int]
    dtype: str = "float32"

    def logits(self, device: str) -> Tensor:
        """Seeded random logits, smooth enough to be interpolated."""
        x = 3 * torch.randn(self.shape, generator=torch.Generator().manual_seed(0))
        return x.to(device, getattr(torch, self.dtype))


CASES = (
    Case("Cityscapes image", (1, 19, 256, 512), (1024, 2048), (4, 4)),
    Case("64 CamVid patches", (64, 11, 23, 30), (90, 120), (1, 1)),
)


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def full_resolution(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Entropy of full-resolution logits, summed per patch, as one writes it: the paper's equation 1, step by step."""
    log_p = F.log_softmax(x, 1)
    entropy = -(log_p.exp() * log_p).sum(1)
    (B, H, W), (rows, cols) = entropy.shape, grid
    ph, pw = H // rows, W // cols
    return entropy[:, : rows * ph, : cols * pw].reshape(B, rows, ph, cols, pw).sum((2, 4))


def logsumexp_form(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same with log S - T / S, which a compiler can fuse into fewer passes."""
    m = x.amax(1, keepdim=True)
    d = x - m
    e = d.exp()
    S = e.sum(1)
    entropy = S.log() - (d * e).sum(1) / S
    (B, H, W), (rows, cols) = entropy.shape, grid
    ph, pw = H // rows, W // cols
    return entropy[:, : rows * ph, : cols * pw].reshape(B, rows, ph, cols, pw).sum((2, 4))


def alternatives(x: Tensor, case: Case) -> dict[str, Callable[[], Tensor]]:
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
    out = torch.empty(case.shape[0], *case.grid, device=x.device)
    return {
        EAGER: lambda: chain(full_resolution, x),
        "compiled": lambda: compiled["full_resolution"](upsample(x, case.size), case.grid),
        "compiled log S-T/S": lambda: compiled["logsumexp_form"](upsample(x, case.size), case.grid),
        "compiled all": lambda: whole["full_resolution"](x),
        "compiled all log S-T/S": lambda: whole["logsumexp_form"](x),
        OURS: lambda: patch_entropy(x, case.size, case.grid, out=out),
    }


def run_case(case: Case, roof: Roof, *, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Check and time one case; the result is what ``--json`` writes.

    Raises
    ------
    RuntimeError
        If the kernel is not within MAX_ERROR of the reference.
    """
    x = case.logits(device)
    expected = reference.patch_entropy(x, case.size, case.grid)[0]
    work, errors = {}, {}
    with torch.inference_mode():
        for name, call in alternatives(x, case).items():
            errors[name] = float(((call().double().cpu() - expected).abs() / expected).max())
            if errors[name] <= MAX_ERROR:
                work[name] = call
    if OURS not in work:
        raise RuntimeError(f"{case.name}: relative error {errors[OURS]:.1e} of the kernel exceeds {MAX_ERROR}")
    synchronize = torch.cuda.synchronize if device == "cuda" else None
    timings = interleaved(work, rounds=rounds, warmup=2, synchronize=synchronize)
    counts = cost.patch_entropy(case.shape, case.size, case.grid, item_bytes=x.element_size())
    least = roof.seconds(counts.exps, counts.bytes_moved)
    best_compiled = min((n for n in work if n.startswith("compiled")), key=lambda n: timings[n].median)
    return {
        "case": asdict(case),
        "device": device,
        "cost": asdict(counts),
        "roof_ms": 1e3 * least,
        "best_compiled": best_compiled,
        "speedup_over_eager": timings[OURS].ratio(timings[EAGER]),
        "speedup_over_best_compiled": timings[OURS].ratio(timings[best_compiled]),
        "alternatives": {
            name: {
                "median_ms": 1e3 * timing.median,
                "best_ms": 1e3 * timing.best,
                "speedup_over_eager": timing.ratio(timings[EAGER]),
                "share_of_roof": least / timing.median,
                "relative_error": errors[name],
            }
            for name, timing in timings.items()
        },
        "left_out": {name: error for name, error in errors.items() if name not in work},
    }


def run(*, rounds: int = 9, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """Measure the roof and all cases on the CPU."""
    roof = measure_roof()
    return {
        "machine": machine(),
        "roof": asdict(roof),
        "cases": [run_case(case, roof, rounds=rounds) for case in cases],
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the result as tables of at most 80 columns."""
    card, roof = result["machine"], result["roof"]
    console.print(
        f"{card['cpu']}, {roof['threads']} threads, torch {card['torch']}. Measured roof: "
        f"{roof['exps_per_second'] / 1e9:.2f} G exp/s, {roof['bytes_per_second'] / 1e9:.1f} GB/s."
    )
    for case in result["cases"]:
        about, counts = case["case"], case["cost"]
        title = (
            f"{about['name']}: {about['shape']} {about['dtype']} → {about['size'][0]}×{about['size'][1]}, "
            f"{about['grid'][0]}×{about['grid'][1]} patches"
        )
        megabytes = (counts["bytes_read"] + counts["bytes_written"]) / 1e6
        caption = f"{counts['exps'] / 1e6:.1f} M exp, {megabytes:.1f} MB: at best {case['roof_ms']:.2f} ms here"
        table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=None)
        table.add_column("", no_wrap=True)
        for heading in ("median ms", "best ms", "× eager", "of roof", "rel. error"):
            table.add_column(heading, justify="right")
        for name, row in case["alternatives"].items():
            table.add_row(
                name,
                f"{row['median_ms']:.2f}",
                f"{row['best_ms']:.2f}",
                f"{row['speedup_over_eager']:.1f}",
                f"{row['share_of_roof']:.0%}",
                f"{row['relative_error']:.0e}",
            )
        console.print(table)
        console.print(
            f"{OURS}: {case['speedup_over_eager']:.1f} times faster than the eager chain, "
            f"{case['speedup_over_best_compiled']:.1f} times than the best torch.compile ({case['best_compiled']}).\n"
        )
