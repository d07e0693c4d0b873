"""Score the pool (paper, Step 1): logits at stride 4 → uncertainty per patch, in one pass over the frames."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..grid import Grid
from ..kernels import patch_entropy
from ..machine.backend import Backend
from ..network.features import Features, Given, Means, logits_of, maps_of, patch_means
from ..network.features import filled as filled_up
from ..network.fold import for_scoring
from ..network.interface import Network, Upsampling
from ..network.windows import along
from ..timing import Progress, no_progress


@dataclass(frozen=True)
class Predictions:
    """What one pass over the pool yields, per patch in the order of ids; None where nobody asked."""

    score: Tensor | None = None
    """float32 ``[n_patches]``: mean uncertainty per pixel (entropy: nats). The mean orders patches as the sum does."""
    features: Tensor | None = None
    """float32 ``[n_patches, C]``: F of equation 2."""
    probabilities: Tensor | None = None
    """float32 ``[n_patches, classes]``: mean class probabilities of the patch, taken at stride 4."""
    constant_features: bool = False
    """They are a frozen backbone's, known before the pass: no result of a training, and not looked at by `bad`."""

    best = None
    """The pool is here: whoever looks for its most uncertain patches sorts `score`."""

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """A field's rows for patches ``ids``."""
        values: Tensor = getattr(self, name)
        return values[ids]

    def bad(self, device: torch.device) -> Tensor:
        """The first patch of which anything is not finite (NaN or infinite logits), -1 for none: int64 ``[]``."""
        known = [self.score, self.probabilities, None if self.constant_features else self.features]
        found = [~values.unsqueeze(-1).flatten(1).isfinite().all(1) for values in known if values is not None]
        if not found:
            return torch.full((), -1, device=device)
        bad = torch.stack(found).any(0)
        return torch.where(bad.any(), bad.to(torch.uint8).argmax(), -1)


@dataclass(frozen=True)
class PatchMaps:
    """What the network says about some patches, for people to look at."""

    entropy: Tensor
    """float32 ``[n, patch_height, patch_width]``, nats."""
    prediction: Tensor
    """uint8 ``[n, patch_height, patch_width]``, class indices."""


@torch.no_grad()
def predict(model: Network, features: Features, needs: Collection[str], score: str, backend: Backend,
            progress: Progress = no_progress, vectors: Callable[[], Tensor] | None = None,
            filled: Tensor | None = None) -> Predictions:
    """Run the network over all frames and keep what is needed of it per patch.

    Parameters
    ----------
    needs
        Any of ``score``, ``features``, ``probabilities``: fields of `Predictions` to fill.
    score
        ``entropy``, ``least_confidence`` or ``margin``; see `meal_gpu.kernels.patch_entropy`.
    vectors
        Gives the features where they are a frozen backbone's: constants, which are asked for instead of computed.
    filled
        int64 ``[n_patches, 2]``: pixel rows and columns of each patch that its image fills, where some do not fill
        theirs. The score is the mean over these pixels; features and probabilities are those of the whole patch.

    Nothing is checked for being finite here, since that would wait for the device: `Predictions.bad` does it once
    for the whole pool, without waiting.
    """
    if vectors is not None and "features" in needs:
        seen = predict(model, features, set(needs) - {"features"}, score, backend, progress, filled=filled)
        return replace(seen, features=vectors(), constant_features=True)
    wanted = tuple(name for name in ("score", "features", "probabilities") if name in needs)
    if not wanted:
        return Predictions()
    cells, of_batch, network = features.frames.grid.cells, backend.compiled(predict_batch), for_scoring(model, backend)
    # One block each, from the first batch on: small results of every batch between its large temporaries would leave
    # the host's heap in pieces, and its memory would grow with the pool.
    held: dict[str, Tensor] = {}

    def keep(name: str, values: Tensor, frames: slice) -> None:
        if name not in held:
            held[name] = values.new_empty(features.frames.count * cells, *values.shape[1:])
        n = (frames.stop - frames.start) * cells
        held[name][frames.start * cells :][:n] = values[:n]

    low, high = features.means[features.logits_size], features.means[features.high_size]
    for frames, given in features.given():
        real = None if filled is None else filled_up(filled[frames.start * cells : frames.stop * cells],
                                                     features.batch * cells)
        found = of_batch(network, given, features.upsampling, low, high, features.frames.grid, wanted, score, backend,
                         real)
        for name, values in zip(wanted, found, strict=True):
            keep(name, values, frames)
        progress("score", frames.stop, features.frames.count)
    return Predictions(held.get("score"), held.get("features"), held.get("probabilities"))


def predict_batch(model: Network, given: Given, up: Upsampling, low: Means, high: Means, grid: Grid,
                  wanted: tuple[str, ...], score: str, backend: Backend, filled: Tensor | None = None) -> list[Tensor]:
    """What is wanted of a batch, in that order; matrices from `Features`, ``filled`` of its patches as in `predict`."""
    if wanted == ("features",):
        with backend.autocast():
            return [patch_means(maps_of(model, given)[1], *high)]
    found = []
    logits, maps = logits_of(model, given, up, backend)
    if "score" in wanted:
        size, tiling = (grid.height, grid.width), (grid.rows, grid.cols)
        if filled is None:
            sums = patch_entropy(logits, size, tiling, score=score, align_corners=model.align_corners)
            found.append(sums.flatten() / grid.patch_pixels)
        else:
            sums, pixels = patch_entropy(logits, size, tiling, score=score, align_corners=model.align_corners,
                                         return_map=True)
            found.append(filled_means(sums.flatten() / grid.patch_pixels, pixels, grid, filled))
    if "features" in wanted:
        found.append(patch_means(maps, *high))
    if "probabilities" in wanted:
        found.append(patch_means(logits.float().softmax(1), *low))
    return found


def filled_means(means: Tensor, pixels: Tensor, grid: Grid, filled: Tensor) -> Tensor:
    """Means over what images fill of their patches, float32 ``[B * cells]``, of scores float32 ``[B, H, W]``.

    ``means`` are those over whole patches, and stay where a patch is filled. 0 where nothing is.
    """
    high, wide = grid.patch_height, grid.patch_width
    pixels = pixels[:, : grid.rows * high, : grid.cols * wide]
    patches = pixels.unflatten(2, (grid.cols, wide)).unflatten(1, (grid.rows, high)).transpose(2, 3).flatten(0, 2)
    rows, cols = filled[:, 0, None], filled[:, 1, None]
    real = ((torch.arange(high, device=filled.device) < rows)[:, :, None]
            & (torch.arange(wide, device=filled.device) < cols)[:, None])
    sums = torch.where(real, patches, 0.0).double().sum((1, 2))
    count = filled.prod(1)
    return torch.where(count == grid.patch_pixels, means, (sums / count.clamp(min=1)).float())


@torch.no_grad()
def patch_maps(model: Network, features: Features, ids: Tensor, backend: Backend) -> PatchMaps:
    """Entropy map and prediction of single patches ``ids`` int64 ``[n]`` (host), through the windowed decoder."""
    model.eval()
    cells, windows = features.frames.grid.cells, features.windows
    entropy, prediction = [], []
    parts, where = ids.split(features.batch), (ids % cells).to(features.frames.device).split(features.batch)
    for at_cells, maps in zip(where, features.read(model, [part // cells for part in parts]), strict=True):
        at = windows.of(at_cells)
        with backend.autocast():
            logits = model.window_logits(*maps, at)
        pixels = along(at.rows.pixels, at.cols.pixels, logits.float().permute(0, 2, 3, 1))
        log_p = pixels.log_softmax(-1)
        entropy.append(-(log_p.exp() * log_p).sum(-1))
        prediction.append(pixels.argmax(-1).to(torch.uint8))
    return PatchMaps(torch.cat(entropy), torch.cat(prediction))
