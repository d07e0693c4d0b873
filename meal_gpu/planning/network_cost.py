"""What the network's stages must do, counted without doing it: FLOPs and operations on tensors that hold no data.

Together with the bytes, which are arithmetic, these are the numerators of rooflines and of `estimate`. Bytes are the
least: each input and output of a stage once, weights once per batch. An implementation that moves more is slower.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..config import Config
from ..grid import Grid
from ..kernels import cost
from ..network.features import BATCH_PIXELS, full_batch
from ..network.model import RATES, DeepLabV3Plus
from ..network.windows import Windows, along
from .roofline import Work

META = torch.device("meta")


class _Dispatches(TorchDispatchMode):
    """Counts the operations that the host starts; views cost it next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def counted(work: Callable[[], object]) -> Work:
    """FLOPs and dispatches of a call."""
    with FlopCounterMode(display=False) as flops, _Dispatches() as dispatches:
        work()
    return Work(flops=flops.get_total_flops(), dispatches=dispatches.count)


@dataclass(frozen=True)
class Network:
    """Counts of one network on frames of a grid."""

    model: DeepLabV3Plus
    """On the meta device."""
    grid: Grid
    """Within a frame."""
    classes: int
    item_bytes: int
    """Of a value in the autocast dtype."""
    batch: int
    """Frames per forward pass over a pool that is no smaller."""

    @classmethod
    def of(cls, config: Config, classes: int, dtype: torch.dtype, pixels: int = BATCH_PIXELS) -> "Network":
        """``pixels``: of a batch, as from `features.batch_pixels`."""
        grid = config.data.tiling().within(config.data.context)
        with META:
            model = DeepLabV3Plus(classes, config.model.without_weights)
        return cls(model, grid, classes, dtype.itemsize, full_batch(config.data, pixels))

    def maps(self, n: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            low, high = self.model.features(pixels_on(META, n, self.grid))
        return low, high

    def features(self, frames: int) -> Work:
        """Pixels → maps of the backbone."""
        self.model.eval()
        low, high = self.maps(1)
        one = counted(lambda: self.maps(self.batch))
        each = self.grid.height * self.grid.width * 3 + (low.numel() + high.numel()) * self.item_bytes
        return self._batches(one, frames, each, _n_parameters(self.model.backbone))

    def forward(self, frames: int) -> Work:
        """Maps → logits at stride 4."""
        self.model.eval()
        low, high = self.maps(self.batch)
        with torch.no_grad():
            one = counted(lambda: self.model.logits(low, high))
        each = (low[0].numel() + high[0].numel() + self.classes * low[0, 0].numel()) * self.item_bytes
        return self._batches(one, frames, each, _n_parameters(self.model) - _n_parameters(self.model.backbone))

    def entropy(self, frames: int) -> Work:
        """Logits → uncertainty per patch."""
        (low, _), grid = self.maps(1), self.grid
        counts = cost.patch_entropy((frames, self.classes, *low.shape[2:]), (grid.height, grid.width),
                                    (grid.rows, grid.cols), item_bytes=self.item_bytes)
        return Work(bytes=counts.bytes_moved, exps=counts.exps, dispatches=-(-frames // self.batch))

    def vectors(self, frames: int) -> Work:
        """Maps → feature vectors of patches."""
        _, high = self.maps(1)
        out = frames * self.grid.cells * high.shape[1] * 4
        return Work(bytes=high.numel() * self.item_bytes * frames + out)

    def evaluation(self, frames: int) -> Work:
        """Maps (frozen) or pixels, and masks → a confusion matrix, by way of logits at stride 4."""
        (low, _), grid = self.maps(1), self.grid
        counted = cost.confusion((frames, self.classes, low.shape[2], low.shape[3]), (grid.height, grid.width),
                                 (grid.rows * grid.patch_height, grid.cols * grid.patch_width),
                                 item_bytes=self.item_bytes)
        work = self.forward(frames) + Work(bytes=counted.bytes_moved, dispatches=-(-frames // self.batch))
        return work if self.model.freeze_backbone else work + self.features(frames)

    def training(self, patches: int, batch: int) -> Work:
        """An epoch: maps or pixels of each patch's frame, forward, backward, Adam.

        The optimiser reads and writes a weight and its two moments and reads its gradient, in float32.
        """
        low, high = self.maps(batch)
        at = Windows.of_grid(self.grid, (low.shape[2], low.shape[3]), (high.shape[2], high.shape[3]), RATES, META).of(
            torch.zeros(batch, dtype=torch.int64, device=META))
        self.model.train()
        frozen = self.model.freeze_backbone

        @torch.enable_grad()
        def step() -> None:
            pair = (low, high) if frozen else self.model.features(pixels_on(META, batch, self.grid))
            logits = self.model.window_logits(*pair, at)
            along(at.rows.pixels, at.cols.pixels, logits.permute(0, 2, 3, 1)).sum().backward()

        one = counted(step)
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        frame = self.grid.height * self.grid.width * 3
        each = (low[0].numel() + high[0].numel()) * self.item_bytes if frozen else frame
        per_step = Work(bytes=trained * 4 * 7 + each * batch, flops=one.flops, dispatches=one.dispatches)
        return per_step.times(patches // batch or 1)

    def _batches(self, one: Work, frames: int, each: int, weights: int) -> Work:
        batches = -(-frames // self.batch)  # all of one size: the last is filled up
        return Work(bytes=each * frames + weights * self.item_bytes * batches,
                    flops=round(one.flops * (batches if batches > 1 else frames / self.batch)),
                    dispatches=one.dispatches * batches)


def pixels_on(device: torch.device, n: int, grid: Grid) -> Tensor:
    """What the backbone is given for n frames, float32 ``[n, 3, H, W]``."""
    return torch.zeros(n, grid.height, grid.width, 3, device=device).permute(0, 3, 1, 2)


def _n_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
