"""What a kernel must read, write and compute, as plain integers: the numerators of the roofline."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Counts of one call; a benchmark divides them by its seconds."""

    pixels: int  # of the upsampled images
    bytes_read: int  # each input byte once
    bytes_written: int  # each output byte once
    exps: int  # exponentials
    flops: (
        int  # additions, multiplications, comparisons; a multiply-add is two; exponentials and logarithms not counted
    )

    @property
    def bytes_moved(self) -> int:
        return self.bytes_read + self.bytes_written


def patch_entropy(
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    grid: tuple[int, int],
    *,
    item_bytes: int,
    score: str = "entropy",
    return_map: bool = False,
) -> Cost:
    """Cost of `meal_gpu.kernels.patch_entropy` for logits [B, C, h, w] of item_bytes each.

    The algorithm is the kernels' one. The horizontal half of the upsampling is done per low-resolution row (a
    subtraction and a multiply-add per class and column, and the difference of two rows), the vertical half per pixel (a
    multiply-add per class). The largest class needs no exponential; the C - 1 others have a maximum, a minimum, a
    subtraction and an addition each, and what their score accumulates; 20 operations finish a pixel (logarithm,
    division, patch sum). A ratio needs the two largest alone: three comparisons per class, one exponential per pixel.
    """
    (B, C, h, w), (H, W), (rows, cols) = shape, size, grid
    pixels = B * H * W
    accumulate = {"entropy": 2, "margin": 1}.get(score, 0)  # a multiply-add; a maximum
    others = 3 if score == "ratio" else 4 + accumulate
    flops = pixels * ((C - 1) * others + 20)
    if (h, w) != (H, W):
        flops += pixels * C * 2 + B * h * W * C * 4
    return Cost(
        pixels=pixels,
        bytes_read=B * C * h * w * item_bytes,
        bytes_written=4 * B * rows * cols + (4 * pixels if return_map else 0),
        exps=pixels * (1 if score == "ratio" else C - 1),
        flops=flops,
    )


def confusion(
    shape: tuple[int, int, int, int], size: tuple[int, int], truth: tuple[int, int], *, item_bytes: int
) -> Cost:
    """Cost of `meal_gpu.kernels.confusion_counts` for logits [B, C, h, w] of item_bytes each and truth [B, *truth].

    Per class and pixel that is counted four products, three additions and a comparison; per pixel four products for the
    weights of its corners. Nothing but the counts is written.
    """
    (B, C, h, w), pixels = shape, shape[0] * truth[0] * truth[1]
    return Cost(
        pixels=B * size[0] * size[1],
        bytes_read=B * C * h * w * item_bytes + pixels,
        bytes_written=8 * C * C,
        exps=0,
        flops=pixels * (C * 8 + 4),
    )
