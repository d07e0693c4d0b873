"""Windows: the geometry that lets the decoder run on labelled patches only, and the upsampling inside it.

Bilinear interpolation, cutting out a window and zero padding are all linear along one axis, so each is a small matrix
and a pair of matrix products (rows, then columns). That has four uses: shapes are the same for every patch of the
grid, nothing is scattered (matrix products have a deterministic backward pass on every device), no Python runs per
patch, and the 3 × 3 convolution over upsampled features can be taken *before* the upsampling (see `Decoder`).

All coordinates here follow ``align_corners=True``: pixel ``y`` of ``n_out`` sits at ``y * (n_in - 1) / (n_out - 1)``.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..grid import Grid, Size


def bilinear_matrix(n_out: int, n_in: int, align_corners: bool = True) -> np.ndarray:
    """Linear interpolation along one axis, as ``torch.nn.functional.interpolate`` has it, float64 ``[n_out, n_in]``."""
    if align_corners:
        position = np.arange(n_out) * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    else:
        position = np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1)
    lower = np.minimum(np.floor(position).astype(int), max(n_in - 2, 0))
    weight = position - lower
    matrix = np.zeros((n_out, n_in))
    matrix[np.arange(n_out), lower] = 1 - weight
    if n_in > 1:
        matrix[np.arange(n_out), lower + 1] += weight
    return matrix


def taps(matrix: np.ndarray) -> np.ndarray:
    """Rows ``y - 1, y, y + 1`` of a matrix ``[n, m]`` beside each other, zero outside: ``[n, 3, m]``."""
    padded = np.pad(matrix, ((1, 1), (0, 0)))
    return np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=1)


def along(rows: Tensor, cols: Tensor, x: Tensor) -> Tensor:
    """Apply one matrix along each axis: rows ``[B, m, h]``, cols ``[B, n, w]``, x ``[B, h, w, C]`` → ``[B, m, n, C]``.

    A leading 1 in place of B is broadcast.
    """
    (n, width), channels = cols.shape[1:], x.shape[3]
    if len(cols) == 1 or n * width <= (n + width) * channels:
        return torch.matmul(cols.unsqueeze(1), _down(rows, x))
    # That product copies each entry's matrix for every row, and keeps it for the backward pass: 273 MB in bfloat16 for
    # the pixels of eight patches of 256 × 512. Where it is less, the map is turned instead, while it is small.
    return _down(rows, _across(cols, x)) if n > width else _across(cols, _down(rows, x)).contiguous()


def _down(rows: Tensor, x: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    return torch.matmul(rows, x.reshape(batch, height, width * channels)).view(batch, -1, width, channels)


def _across(cols: Tensor, x: Tensor) -> Tensor:
    """One product per entry, on its turned map."""
    batch, height, width, channels = x.shape
    turned = torch.bmm(cols, x.transpose(1, 2).reshape(batch, width, height * channels))
    return turned.view(batch, -1, height, channels).transpose(1, 2)


@dataclass(frozen=True)
class Axis:
    """The matrices of one axis, one entry per grid row (or column); sizes in brackets, float32.

    A *window* is the run of ``m`` stride-4 cells that the patch's pixels are interpolated from. Halo rows are taken
    from inside the image, so that batch-norm never sees padding, and moved into place (`*_place`, zero outside the
    image) before each convolution, which is what zero padding of the whole map would have given.
    """

    high: Tensor
    """[n, k, n16] cuts the stride-16 cells that the window and its halo are interpolated from."""
    atrous: Tensor
    """[n, rates, 3 * k, n16] cuts, per rate, the three taps that a dilated convolution reads for those cells."""
    low: Tensor
    """[n, m2, n4] cuts the stride-4 cells of the window with a halo of 2."""
    low_place: Tensor
    """[n, m1 + 2, m2]"""
    up: Tensor
    """[n, m1, 3 * k] interpolates ×4 and places the three taps of a convolution along this axis."""
    mid_place: Tensor
    """[n, m + 2, m1]"""
    pixels: Tensor
    """[n, p, m] interpolates the window's logits to the patch's pixels."""

    def at(self, index: Tensor) -> "Axis":
        """The entries of the given grid rows, for a batch of patches."""
        return Axis(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device) -> "Axis":
        return Axis(*(getattr(self, field.name).to(device) for field in fields(self)))


def axis_windows(n_pixels: int, patch: int, n_patches: int, n4: int, n16: int, rates: tuple[int, ...]) -> Axis:
    """The windows of ``n_patches`` patches of ``patch`` pixels on an axis of ``n_pixels`` pixels."""
    to_pixels, to_low = bilinear_matrix(n_pixels, n4), bilinear_matrix(n4, n16)
    low_taps = taps(to_low)

    spans = [_span(to_pixels[i * patch : (i + 1) * patch]) for i in range(n_patches)]
    m = max(stop - start for start, stop in spans)
    out = [min(start, n4 - m) for start, _ in spans]
    m1, m2 = min(m + 2, n4), min(m + 4, n4)
    mid = [min(max(start - 1, 0), n4 - m1) for start in out]
    low = [min(max(start - 1, 0), n4 - m2) for start in mid]
    cells = [_span(low_taps[start : start + m1].reshape(-1, n16)) for start in mid]
    k = max(stop - start for start, stop in cells)
    high = [min(start, n16 - k) for start, _ in cells]

    def stack(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(parts).astype(np.float32))

    each = range(n_patches)
    atrous = [np.stack([np.concatenate([_place(high[i] + tap * rate, k, 0, n16) for tap in (-1, 0, 1)])
                        for rate in rates]) for i in each]
    return Axis(
        atrous=stack(atrous),
        high=stack([np.eye(n16)[high[i] : high[i] + k] for i in each]),
        low=stack([np.eye(n4)[low[i] : low[i] + m2] for i in each]),
        low_place=stack([_place(mid[i] - 1, m1 + 2, low[i], m2) for i in each]),
        up=stack([low_taps[mid[i] : mid[i] + m1, :, high[i] : high[i] + k].reshape(m1, 3 * k) for i in each]),
        mid_place=stack([_place(out[i] - 1, m + 2, mid[i], m1) for i in each]),
        pixels=stack([to_pixels[i * patch : (i + 1) * patch, out[i] : out[i] + m] for i in each]),
    )


@dataclass(frozen=True)
class Windows:
    """Row and column matrices of a batch of patches (or, from `of_grid`, of all grid rows and columns)."""

    rows: Axis
    cols: Axis

    @classmethod
    def of_grid(cls, grid: Grid, low: Size, high: Size, rates: tuple[int, ...], device: torch.device) -> "Windows":
        """The windows of a grid whose images have stride-4 maps of size ``low`` and stride-16 maps of ``high``.

        ``rates`` are the dilations of the 3 × 3 convolutions at stride 16.
        """
        return cls(
            axis_windows(grid.height, grid.patch_height, grid.rows, low[0], high[0], rates).to(device),
            axis_windows(grid.width, grid.patch_width, grid.cols, low[1], high[1], rates).to(device),
        )

    @classmethod
    def whole(cls, grid: Grid, size: Size, align_corners: bool, device: torch.device) -> "Windows":
        """For logits of whole images, of ``size``: what interpolates each patch's pixels from them, nothing else."""

        def axis(n_pixels: int, patch: int, n: int, n_in: int) -> Axis:
            pixels = bilinear_matrix(n_pixels, n_in, align_corners)[: n * patch].reshape(n, patch, n_in)
            nothing = torch.zeros(n, 0)
            others = {field.name: nothing for field in fields(Axis)}
            return Axis(**{**others, "pixels": torch.from_numpy(pixels.astype(np.float32))}).to(device)

        return cls(axis(grid.height, grid.patch_height, grid.rows, size[0]),
                   axis(grid.width, grid.patch_width, grid.cols, size[1]))

    def of(self, cells: Tensor) -> "Windows":
        """The windows of a batch of patches, given their cells int64 ``[B]`` in row-major order."""
        n_cols = len(self.cols.low)
        return Windows(self.rows.at(cells // n_cols), self.cols.at(cells % n_cols))


def _span(matrix: np.ndarray) -> tuple[int, int]:
    """First and one past the last column that a matrix uses."""
    used = np.flatnonzero(matrix.any(axis=0))
    return int(used[0]), int(used[-1]) + 1


def _place(start: int, length: int, held_start: int, held: int) -> np.ndarray:
    """Positions ``start … start + length`` taken from a buffer that holds ``held_start … held_start + held``.

    Positions that the buffer does not hold lie outside the image: the buffer is clamped to it, and wide enough.
    """
    wanted = np.arange(start, start + length)[:, None]
    return (wanted == np.arange(held_start, held_start + held)[None, :]).astype(float)
