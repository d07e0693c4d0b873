"""Every backend of this machine against its reference: what `meal-gpu selfcheck` runs.

A check is a function that returns a finding and its numbers, and raises `Deviation` where a backend disagrees with its
reference, or `Unavailable` where there is nothing to check. The references are the kernels' float64 definitions,
umap-learn, the CPU, and the stored pixels; no file and no network is needed.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..config import UmapConfig
from ..data.frames import HeldFrames, StreamedFrames
from ..grid import Grid
from ..kernels import SCORES, patch_entropy, reference
from ..stages import embed
from ..strategies import select
from . import checks_device, checks_network, outcome
from .outcome import Deviation, Finding


def _kernel(device: torch.device) -> Finding:
    """The kernel against the float64 definition: sums within 1e-5, and the same bits when repeated."""
    worst = 0.0
    for shape, size, grid in (((2, 19, 64, 128), (256, 512), (4, 4)), ((3, 11, 23, 30), (90, 120), (1, 1)),
                              ((1, 5, 48, 40), (48, 40), (3, 2))):
        for score in SCORES:
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                logits = (4 * torch.randn(shape, generator=outcome.draw())).to(dtype)
                sums = patch_entropy(logits.to(device), size, grid, score=score)
                again = patch_entropy(logits.to(device), size, grid, score=score)
                expected, _ = reference.patch_entropy(logits, size, grid, score=score)
                error = ((sums.cpu().double() - expected).abs() / expected.abs()).max().item()
                worst = error if not error <= worst else worst  # NaN must not be overlooked
                if not worst <= 1e-5:
                    raise Deviation(f"{score} of {list(shape)} in {outcome.name(dtype)} is off by {worst:.1e}, more "
                                    "than 1e-5", relative_error=worst)
                if not torch.equal(sums, again):
                    raise Deviation(f"{score} of {list(shape)} in {outcome.name(dtype)} differs from call to call")
    return f"off by {worst:.1e} of float64 at most; repeats itself to the bit", {"relative_error": worst}


def umap_learn() -> Finding:
    """umap-learn keeps neighbours, and repeats itself."""
    vectors = _sheet(300)
    points = embed.fit(vectors, UmapConfig(), 3).points
    return _embedding(vectors, points, embed.fit(vectors, UmapConfig(), 3).points, 0.9)


def umap_cuml() -> Finding:
    """cuML's UMAP keeps neighbours as well as umap-learn's, repeats itself, and places vectors near their like."""
    vectors = _sheet(300).to(outcome.cuda())
    fitted = embed.fit(vectors, UmapConfig(), 3, "cuml")
    if fitted.points.device != vectors.device:
        raise Deviation(f"cuML's points are on {fitted.points.device}")
    theirs = _trust(vectors, embed.fit(vectors.cpu(), UmapConfig(), 3).points)
    text, numbers = _embedding(vectors, fitted.points, embed.fit(vectors, UmapConfig(), 3, "cuml").points, theirs - .03)
    distance = torch.cdist(fitted.place(vectors[:50] + 1e-3), fitted.points)
    rank = (distance.argsort(1) == torch.arange(50, device=distance.device)[:, None]).nonzero()[:, 1].double().mean()
    if not rank < 30:
        raise Deviation(f"placed vectors are the {rank:.0f}th neighbours of their like, among 300", **numbers)
    return f"{text}; umap-learn's {theirs:.3f}", {**numbers, "umap_learn": theirs, "placed_rank": rank.item()}


def _embedding(vectors: Tensor, points: Tensor, again: Tensor, least: float) -> Finding:
    trust = _trust(vectors, points)
    if not trust >= least:
        raise Deviation(f"trustworthiness {trust:.3f}, less than {least:.3f}", trustworthiness=trust)
    if not torch.equal(points, again):
        raise Deviation("the same seed gave other points", trustworthiness=trust)
    return f"trustworthiness {trust:.3f}; the same points again", {"trustworthiness": trust}


def seeding() -> Finding:
    """k-means++ seeding: ids on the CPU, and on CUDA where there is one, against a plain definition."""
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for seed in range(5):
        points = 5 * torch.randn(200, 2, generator=outcome.draw(seed))
        uniforms = torch.rand(32, generator=outcome.draw(seed + 100), dtype=torch.float64)
        expected = _plain_seeding(points.double().numpy(), uniforms.tolist())
        for device in devices:
            ids = select.seed_kmeans(points.to(device), 32, uniforms.to(device)).tolist()
            if ids != expected:
                same = len(set(ids) & set(expected))
                raise Deviation(f"{same} of 32 ids are those of the definition on {device.type}", same=same)
    return f"5 x 32 ids equal on {' and '.join(device.type for device in devices)}", {"devices": len(devices)}


def _kmeans(library: str, device: torch.device) -> Finding:
    """Clusters snapped to rows: one of each of eight far groups of 25 rows, and the same when repeated."""
    centres = torch.tensor([[x, y] for x in (0.0, 100, 200, 300) for y in (0.0, 100)])
    points = (centres.repeat(25, 1) + torch.randn(200, 2, generator=outcome.draw())).to(device)
    ids, again = (select.snap_kmeans(points, 8, 1, library) for _ in range(2))
    groups = len(set((ids % 8).tolist()))
    if groups < 7 or len(set(ids.tolist())) < 8:  # Lloyd's method may miss one from an unlucky start
        raise Deviation(f"{groups} of 8 groups found", groups=groups)
    if not torch.equal(ids, again):
        raise Deviation("the same seed gave other rows")
    return f"{groups} of 8 groups found; the same rows again", {"groups": groups}


def dali() -> Finding:
    """DALI's frames against the stored pixels, to the bit; on CUDA where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = np.random.default_rng(0).integers(0, 256, (6, 62, 97, 3), np.uint8)  # a grid that leaves a remainder
    grid, compared = Grid(4, 4, 62, 97), 0
    for context in ("image", "patch"):
        held = HeldFrames.of(images, grid, context, torch.device("cpu"))
        streamed = StreamedFrames(grid, context, device, images)
        for (_, expected), (_, found) in zip(held.scan(16), streamed.scan(16), strict=True):
            compared += len(expected)
            if not torch.equal(found.cpu(), expected):
                wrong = (found.cpu() != expected).double().mean().item()
                raise Deviation(f"{wrong:.1%} of the values differ from the store ({context} frames, {device.type})",
                                different=wrong)
    return f"{compared} frames equal to the bit on {device.type}", {"frames": compared}


CHECKS: dict[str, Callable[[], Finding]] = {
    "kernel cpu": lambda: _kernel(torch.device("cpu")), "kernel cuda": lambda: _kernel(outcome.cuda()),
    "umap-learn": umap_learn, "umap cuml": umap_cuml, "k-means++": seeding,
    "kmeans sklearn": lambda: _kmeans("sklearn", torch.device("cpu")),
    "kmeans cuml": lambda: _kmeans("cuml", outcome.cuda()), "dali": dali, **checks_network.CHECKS,
    **checks_device.CHECKS,
}


# --- what they share --------------------------------------------------------------------------------------------------


def _sheet(n: int) -> Tensor:
    """A rolled-up sheet in 32 dimensions with a little noise, float32 ``[n, 32]``: neighbours that can be kept."""
    draw = np.random.default_rng(1)
    angle = 1.5 * np.pi * (1 + 2 * draw.random(n))
    sheet = np.stack([angle * np.cos(angle), 15 * draw.random(n), angle * np.sin(angle)], 1)
    turn = np.linalg.qr(draw.standard_normal((32, 32)))[0][:3]
    return torch.from_numpy((sheet @ turn + 0.02 * draw.standard_normal((n, 32))).astype(np.float32))


def _trust(vectors: Tensor, points: Tensor) -> float:
    from sklearn.manifold import trustworthiness

    return float(trustworthiness(vectors.cpu().numpy(), points.cpu().numpy(), n_neighbors=10))


def _plain_seeding(points: np.ndarray, uniforms: list[float]) -> list[int]:
    """Arthur & Vassilvitskii's definition: a row with probability ~ its squared distance to the nearest picked one."""
    picked: list[int] = []
    for u in uniforms:
        weight = np.ones(len(points))
        if picked:
            weight = ((points[:, None] - points[picked]) ** 2).sum(2).min(1)
        mass = weight.cumsum()
        picked.append(int(np.searchsorted(mass, u * mass[-1], side="right")))
    return picked
