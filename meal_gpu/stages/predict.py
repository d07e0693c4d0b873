"""Score the pool (paper, Step 1): logits at stride 4 → uncertainty per patch, in one pass over the frames."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..grid import Grid
from ..kernels import patch_entropy
from ..machine.backend import Backend
from ..network.features import Features, Given, Means, logits_of, maps_of, patch_means
from ..network.features import filled as filled_up
from ..network.fold import for_scoring
from ..network.interface import Network, Upsampling
from ..network.model import DeepLabV3Plus
from ..network.windows import along
from ..timing import Progress, no_progress
from .members import DISAGREEMENTS, disagreements, logits_of_each
from .sampling import mutual_information
from .statistics import STATISTICS, Tiles, measure, tiles_on


@dataclass(frozen=True)
class How:
    """How a pass looks at the pool, beyond what it is asked for."""

    temperature: float = 1.0
    """Logits are divided by it before anything else."""
    dropout: str = "last"
    """``last``, ``decoder`` or ``all``: whose units the samples of ``bald`` drop; see `sampling`."""
    samples: int = 20
    seed: int = 0
    """Of the dropped units."""


PLAIN = How()
BASE = ("score", "features", "probabilities")
"""What a pass may be asked for, beside `STATISTICS` and `BEYOND`."""
BEYOND = {"bald": "what samples of the network with dropped units disagree about, nats",
          "mirrored": "the score of the frames seen in a mirror: a second pass",
          "flip_js": "what the frames and their mirror images disagree about (Jensen-Shannon, nats): the same pass",
          **DISAGREEMENTS}
"""What costs more than the pass itself."""
MIRRORED = frozenset({"mirrored", "flip_js"})


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
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    """Of `STATISTICS` and `BEYOND`: float32 ``[n_patches, …]``."""

    best = None
    """The pool is here: whoever looks for its most uncertain patches sorts `score`."""

    @classmethod
    def of(cls, held: Mapping[str, Tensor]) -> "Predictions":
        """By name."""
        rest = {name: values for name, values in held.items() if name not in BASE}
        return cls(held.get("score"), held.get("features"), held.get("probabilities"), measured=rest)

    def whole(self, name: str) -> Tensor:
        """A field of all patches. Raises `KeyError` for one that nobody asked for."""
        values: Tensor | None = getattr(self, name) if name in BASE else self.measured[name]
        if values is None:
            raise KeyError(name)
        return values

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """A field's rows for patches ``ids``."""
        return self.whole(name)[ids]

    def bad(self, device: torch.device) -> Tensor:
        """The first patch of which anything is not finite (NaN or infinite logits), -1 for none: int64 ``[]``."""
        known = [self.score, self.probabilities, None if self.constant_features else self.features,
                 *self.measured.values()]
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
            filled: Tensor | None = None, how: How = PLAIN, members: Sequence[Network] = ()) -> Predictions:
    """Run the network over all frames and keep what is needed of it per patch.

    Parameters
    ----------
    needs
        Any of ``score``, ``features``, ``probabilities``, `STATISTICS` and `BEYOND`; other names are others' business.
        Nothing else is computed.
    score
        ``entropy``, ``least_confidence``, ``margin`` or ``ratio``, as `meal_gpu.kernels.patch_entropy` has them.
    vectors
        Gives the features where they are a frozen backbone's: constants, which are asked for instead of computed.
    filled
        int64 ``[n_patches, 2]``: pixel rows and columns of each patch that its image fills, where some do not fill
        theirs. The scores are the means over these pixels; everything else is that of the whole patch.
    members
        The other networks of an ensemble, for `DISAGREEMENTS`.

    Nothing is checked for being finite here, since that would wait for the device: `Predictions.bad` does it once
    for the whole pool, without waiting.
    """
    if vectors is not None and "features" in needs:
        seen = predict(model, features, set(needs) - {"features"}, score, backend, progress, filled=filled, how=how,
                       members=members)
        return replace(seen, features=vectors(), constant_features=True)
    wanted = tuple(name for name in (*BASE, *STATISTICS, *BEYOND) if name in needs)
    if not wanted:
        return Predictions()
    plain = set(wanted) <= set(BASE) and how.temperature == 1
    of_batch = backend.compiled(predict_batch) if plain else measure_batch
    cells, network = features.frames.grid.cells, for_scoring(model, backend)
    # One block each, from the first batch on: small results of every batch between its large temporaries would leave
    # the host's heap in pieces, and its memory would grow with the pool.
    held: dict[str, Tensor] = {}

    def keep(name: str, values: Tensor, frames: slice) -> None:
        if name not in held:
            held[name] = values.new_empty(features.frames.count * cells, *values.shape[1:])
        n = (frames.stop - frames.start) * cells
        held[name][frames.start * cells :][:n] = values[:n]

    means = features.means[features.logits_size], features.means[features.high_size]
    more = () if plain else (
        how, tiles_on(features.frames.grid, features.logits_size, features.frames.device, features.align_corners),
        [for_scoring(member, backend) for member in members])
    batches = features.given_twice() if MIRRORED.intersection(wanted) else features.given()
    for frames, given, *mirror in batches:
        real = None if filled is None else filled_up(filled[frames.start * cells : frames.stop * cells],
                                                     features.batch * cells)
        found = of_batch(network, given, features.upsampling, *means, features.frames.grid, wanted, score, backend,
                         real, *more, *mirror)
        for name, values in zip(wanted, found, strict=True):
            keep(name, values, frames)
        progress("score", frames.stop, features.frames.count)
    return Predictions.of(held)


def predict_batch(model: Network, given: Given, up: Upsampling, low: Means, high: Means, grid: Grid,
                  wanted: tuple[str, ...], score: str, backend: Backend, filled: Tensor | None = None) -> list[Tensor]:
    """What of `BASE` is wanted of a batch, in that order; matrices from `Features`, ``filled`` of its patches."""
    if wanted == ("features",):
        with backend.autocast():
            return [patch_means(maps_of(model, given)[1], *high)]
    return base_of(*logits_of(model, given, up, backend), low, high, grid, wanted, score, filled, model.align_corners)


def base_of(logits: Tensor, maps: Tensor, low: Means, high: Means, grid: Grid, wanted: Collection[str], score: str,
            filled: Tensor | None, align_corners: bool) -> list[Tensor]:
    """What of `BASE` is wanted, in that order."""
    found = []
    if "score" in wanted:
        found.append(mean_scores(logits, grid, score, filled, align_corners))
    if "features" in wanted:
        found.append(patch_means(maps, *high))
    if "probabilities" in wanted:
        found.append(patch_means(logits.float().softmax(1), *low))
    return found


def mean_scores(logits: Tensor, grid: Grid, score: str, filled: Tensor | None, align_corners: bool = True) -> Tensor:
    """Mean score per pixel of each patch, float32 ``[B * cells]``."""
    size, tiling = (grid.height, grid.width), (grid.rows, grid.cols)
    if filled is None:
        sums = patch_entropy(logits, size, tiling, score=score, align_corners=align_corners)
        return sums.flatten() / grid.patch_pixels
    sums, pixels = patch_entropy(logits, size, tiling, score=score, align_corners=align_corners, return_map=True)
    return filled_means(sums.flatten() / grid.patch_pixels, pixels, grid, filled)


def measure_batch(model: Network, given: Given, up: Upsampling, low: Means, high: Means, grid: Grid,
                  wanted: tuple[str, ...], score: str, backend: Backend, filled: Tensor | None, how: How, tiles: Tiles,
                  members: Sequence[Network] = (), mirror: Given = ()) -> list[Tensor]:
    """Whatever is wanted of a batch, in that order; ``mirror`` are its frames in a mirror, for `MIRRORED`."""
    with backend.autocast():
        maps = maps_of(model, given)
        inputs = None  # what the last layer of somebody's network is given, nobody knows
        if isinstance(model, DeepLabV3Plus):
            inputs = model.decoder.inputs(model.decoder.fused(maps[0], model.aspp(maps[1]), up))
            logits: Tensor = model.decoder.classify(inputs)
        else:
            logits = model.logits(*maps, up)
    as_made = logits
    if how.temperature != 1:
        logits = logits.float() / how.temperature
    base = [name for name in BASE if name in wanted]
    found = dict(zip(base, base_of(logits, maps[1], low, high, grid, wanted, score, filled, model.align_corners),
                     strict=True))
    names = [name for name in wanted if name in STATISTICS]
    if names:
        found |= measure(names, logits, inputs, tiles)
    if "bald" in wanted:
        assert isinstance(model, DeepLabV3Plus)  # `prepare` has refused others
        unsure = mutual_information(model, *maps, up, how.dropout, how.samples, how.seed, backend)
        found["bald"] = tiles.means(unsure[:, None]).squeeze(1)
    if mirror:
        other = logits_of(model, mirror, up, backend)[0]
        other = (other.float() / how.temperature if how.temperature != 1 else other).flip(3)
        if "mirrored" in wanted:
            found["mirrored"] = mean_scores(other, grid, score, filled, model.align_corners)
        if "flip_js" in wanted:  # the mutual information of two is their Jensen-Shannon divergence
            found["flip_js"] = tiles.means(disagreements(["disagreement"], [logits, other])[0][:, None]).squeeze(1)
    names = [name for name in DISAGREEMENTS if name in wanted]
    if names:
        apart = disagreements(names, logits_of_each(as_made, members, given, maps, up, backend))
        found |= zip(names, tiles.means(torch.stack(apart, 1)).unbind(1), strict=True)
    return [found[name] for name in wanted]


def passes(needs: Collection[str], how: How, members: Sequence[Network] = ()) -> dict[str, int]:
    """What a look costs, by name: ``pool``, forward passes over the pool; ``samples``, of dropped units, per pass;
    ``members``, further networks that ran in a pass: whole, or everything behind the frozen backbone that they share.
    """
    known = {*BASE, *STATISTICS, *BEYOND}.intersection(needs)
    if not known:
        return {}
    samples = {f"samples_{how.dropout}": how.samples} if "bald" in known else {}
    others = {"members": len(members)} if known & DISAGREEMENTS.keys() else {}
    return {"pool": 2 if MIRRORED & known else 1, **samples, **others}


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
