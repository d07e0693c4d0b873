"""What a pass tells of a patch beside its score, from logits at stride 4; each only where it is asked for.

A number per cell of the map becomes one per patch by interpolation to the image and the mean over the patch's pixels,
so that cells which two patches share (CamVid's are 22.5 cells high) count for both, each by its part. What counts
instead, boundaries and components, takes each cell for the one patch in which its centre lies.
"""

import functools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import Grid, Size
from ..network.features import mean_matrices, patch_means
from ..network.windows import bilinear_matrix

STATISTICS: dict[str, str] = {
    "entropy": "mean entropy of the class probabilities, nats",
    "least_confidence": "mean of 1 - p1, p1 ≥ p2 ≥ … being a pixel's class probabilities",
    "margin": "mean of 1 - (p1 - p2)",
    "ratio": "mean of p2 / p1",
    "histogram": "per class, the share of the patch that is predicted as it",
    "class_entropy": "per class, the mean of its probability times the pixel's entropy",
    "impurity": "mean over 3 × 3 cells of the entropy of their predicted classes, in units of log(classes)",
    "ripu": "mean of that times the mean entropy of the 3 × 3 cells, in the same units",
    "boundary": "pixels of boundary between predicted classes inside the patch",
    "components": "connected regions of one predicted class (4 neighbours) in the patch",
    "residual": "per class, the mean of δ = p - onehot(predicted class)",
    "inputs": "mean of φ, what the last 1 × 1 convolution is given",
    "gradient_norm": "mean over pixels of |δ| |φ|, the length of the last layer's gradient for the predicted class",
    "gradient": "mean over pixels of δ φᵀ, that gradient itself: [classes · channels]",
}
"""Fields of a pass, float32 ``[n_patches]`` or ``[n_patches, …]``, which a strategy may need by these names."""
OF_INPUTS = frozenset({"inputs", "gradient_norm", "gradient"})
"""Those that need φ, and so a network whose last layer is known."""
VECTORS = frozenset({"histogram", "class_entropy", "residual", "inputs", "gradient"})
"""Those with more than one number per patch."""


@dataclass(frozen=True)
class Tiles:
    """How a map of a size lies under a grid's patches."""

    grid: Grid
    rows: Tensor
    """float32 ``[1, grid.rows, h]``, and ``cols`` ``[1, grid.cols, w]``: see `mean_matrices`."""
    cols: Tensor
    inside_rows: Tensor
    """float32 ``[grid.rows, h]``, and ``inside_cols`` ``[grid.cols, w]``: 1 where a cell's centre is in the patch."""
    inside_cols: Tensor
    row_of: Tensor
    """int64 ``[h]``, and ``col_of`` ``[w]``: the patch row of each cell, -1 for none."""
    col_of: Tensor
    down: list[slice]
    """Per patch row, the cells that it is interpolated from; ``across`` per patch column."""
    across: list[slice]
    step: tuple[float, float]
    """Pixels from one cell to the next, down and across."""

    @classmethod
    def of(cls, grid: Grid, size: Size, device: torch.device, align_corners: bool = True) -> "Tiles":
        rows, cols = mean_matrices(grid, size, device, align_corners)
        axes = ((grid.height, grid.patch_height, grid.rows, size[0]), (grid.width, grid.patch_width, grid.cols,
                                                                      size[1]))
        owners, steps = zip(*(_owners(*axis, align_corners) for axis in axes), strict=True)
        inside = [(owner == torch.arange(n)[:, None]).float() for owner, n in zip(owners, (grid.rows, grid.cols),
                                                                                 strict=True)]
        down, across = (_supports(*axis, align_corners) for axis in axes)
        return cls(grid, rows, cols, inside[0].to(device), inside[1].to(device),
                   owners[0].to(device), owners[1].to(device), down, across, (steps[0], steps[1]))

    def means(self, maps: Tensor) -> Tensor:
        """Maps ``[B, C, h, w]`` → float32 ``[B * cells, C]``."""
        return patch_means(maps, self.rows, self.cols)

    def sums(self, maps: Tensor) -> Tensor:
        """Of maps ``[B, h, w]``, over the cells whose centres are in each patch: float32 ``[B * cells]``."""
        return (self.inside_rows @ maps.float() @ self.inside_cols.T).flatten()


@functools.lru_cache(maxsize=8)
def tiles_on(grid: Grid, size: Size, device: torch.device, align_corners: bool) -> Tiles:
    """`Tiles.of`, brought to the device once."""
    return Tiles.of(grid, size, device, align_corners)


def _owners(n_pixels: int, patch: int, n_patches: int, n_in: int, align_corners: bool) -> tuple[Tensor, float]:
    if align_corners:
        step, first = (n_pixels - 1) / max(n_in - 1, 1), 0.0
    else:
        step = n_pixels / n_in
        first = step / 2 - 0.5
    # Pixel i reaches from i - 1/2 to i + 1/2.
    owner = np.floor((first + step * np.arange(n_in) + 0.5) / patch).astype(np.int64)
    return torch.from_numpy(np.where((owner >= 0) & (owner < n_patches), owner, -1)), step


def _supports(n_pixels: int, patch: int, n_patches: int, n_in: int, align_corners: bool) -> list[slice]:
    weights = bilinear_matrix(n_pixels, n_in, align_corners)[: n_patches * patch].reshape(n_patches, patch, n_in)
    cells = [np.flatnonzero(weights[i].any(axis=0)) for i in range(n_patches)]
    return [slice(int(used[0]), int(used[-1]) + 1) for used in cells]


def measure(names: Collection[str], logits: Tensor, inputs: Tensor | None, tiles: Tiles) -> dict[str, Tensor]:
    """Some of `STATISTICS` of a batch, rows in the order of patch ids; nothing waits for a device.

    logits ``[B, C, h, w]``; inputs φ ``[B, d, h, w]``, needed for `OF_INPUTS` alone.
    """
    wanted, classes = set(names), logits.shape[1]
    logits = logits.float().contiguous()  # class by class: most of what follows goes through them one after another
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(1)
    first, second = top_two(p) if wanted & {"least_confidence", "margin", "ratio"} else (entropy, entropy)
    predicted = logits.argmax(1)
    hot = (predicted[:, None] == torch.arange(classes, device=logits.device)[:, None, None]).float()
    maps: dict[str, Tensor] = {}  # [B, k, h, w], averaged together below
    for name, one in (("entropy", entropy), ("least_confidence", 1 - first), ("margin", 1 - (first - second)),
                      ("ratio", second / first)):
        if name in wanted:
            maps[name] = one[:, None]
    if "histogram" in wanted:
        maps["histogram"] = hot
    if "class_entropy" in wanted:
        maps["class_entropy"] = p * entropy[:, None]
    if wanted & {"impurity", "ripu"}:
        windows = F.avg_pool2d(hot, 3, 1, 1, count_include_pad=False)
        maps["impurity"] = torch.special.entr(windows).sum(1, keepdim=True) / math.log(classes)
        unsure = F.avg_pool2d(entropy[:, None], 3, 1, 1, count_include_pad=False) / math.log(classes)
        maps["ripu"] = maps["impurity"] * unsure
    if "residual" in wanted:
        maps["residual"] = p - hot
    found: dict[str, Tensor] = {}
    if wanted & OF_INPUTS:
        assert inputs is not None
        if "gradient_norm" in wanted:
            both = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (p - hot, inputs.float()))
            maps["gradient_norm"] = next(both) * next(both)
        if "inputs" in wanted:
            maps["inputs"] = inputs
        if "gradient" in wanted:
            found["gradient"] = gradients(p - hot, inputs.float(), tiles)
    for name in maps.keys() & wanted:
        means = tiles.means(maps[name])
        found[name] = means if name in VECTORS else means.squeeze(1)
    if "boundary" in wanted:
        found["boundary"] = boundary(predicted, tiles)
    if "components" in wanted:
        found["components"] = components(predicted, tiles)
    return found


def top_two(p: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and the second of each pixel ``[B, C, h, w]``; `topk` over a dimension so short sorts memory."""
    first, second = p[:, 0], torch.full_like(p[:, 0], -torch.inf)
    for one in p.unbind(1)[1:]:
        second = torch.maximum(second, torch.minimum(first, one))
        first = torch.maximum(first, one)
    return first, second


def gradients(residual: Tensor, inputs: Tensor, tiles: Tiles) -> Tensor:
    """Mean over each patch of δ φᵀ, float32 ``[B * cells, C * d]``: one product per row of patches, for all its columns
    together, since that reads φ where it lies.

    A sum of outer products, and no outer product of means: on a boundary that is predicted from both sides these means
    cancel while the products do not.
    """
    classes, channels, last = residual.shape[1], inputs.shape[1], inputs.permute(0, 2, 3, 1)
    across = residual[:, None] * tiles.cols[0][:, None, None]  # [B, grid.cols, C, h, w]
    found = []
    for row, down in enumerate(tiles.down):
        errors = (across[:, :, :, down] * tiles.rows[0, row, down, None]).flatten(3).flatten(1, 2)
        found.append(errors @ last[:, down].flatten(1, 2))
    return torch.stack(found, 1).reshape(-1, classes * channels)


def boundary(classes: Tensor, tiles: Tiles) -> Tensor:
    """Pixels of boundary in each patch between cells of other classes, float32 ``[B * cells]``; classes ``[B, h, w]``.

    A boundary beside another patch is none: nobody draws it.
    """
    across, down = (F.pad((~same & within).float(), pad) for same, within, pad in _neighbours(classes, tiles))
    return tiles.sums(across) * tiles.step[0] + tiles.sums(down) * tiles.step[1]


def components(classes: Tensor, tiles: Tiles) -> Tensor:
    """How many connected regions of one class each patch has, float32 ``[B * cells]``; classes int64 ``[B, h, w]``.

    Regions hook onto the least of their neighbours' roots, all at once. In two such steps every region that is not yet
    whole has been joined to another, so their number halves, and a fixed number of steps is enough: nothing waits.
    """
    shape, device = classes.shape, classes.device
    own = torch.arange(classes.numel(), device=device)
    here = own.view(shape)
    others = [torch.where(F.pad(same & within, pad), here + step, here).flatten()
              for (same, within, pad), step in zip(_neighbours(classes, tiles), (1, shape[2]), strict=True)]
    one, other, root = torch.cat([own, own]), torch.cat(others), own
    cells = max(s.stop - s.start for s in tiles.down) * max(s.stop - s.start for s in tiles.across)
    doublings = max(1, math.ceil(math.log2(cells)))
    for _ in range(2 * doublings):
        a, b = root[one], root[other]
        hooked = root.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        for _ in range(doublings):
            before, hooked = hooked, hooked[hooked]
            if device.type == "cpu" and torch.equal(before, hooked):  # a look at the host's memory is free
                break
        if device.type == "cpu" and torch.equal(root, hooked):
            break
        root = hooked
    return tiles.sums((root == own).view(shape))


def _neighbours(classes: Tensor, tiles: Tiles) -> Iterator[tuple[Tensor, Tensor, tuple[int, ...]]]:
    """Per direction, across and down: whether a cell and the next are of one class, whether both are in one patch, and
    how to pad that to the map."""
    col, row = tiles.col_of, tiles.row_of
    yield classes[:, :, 1:] == classes[:, :, :-1], ((col[1:] == col[:-1]) & (col[1:] >= 0)), (0, 1)
    yield classes[:, 1:] == classes[:, :-1], ((row[1:] == row[:-1]) & (row[1:] >= 0))[:, None], (0, 0, 0, 1)
