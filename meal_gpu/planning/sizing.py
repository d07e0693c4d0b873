"""What a run needs in memory and on disk, before it starts: the arithmetic that `info` shows and placement follows."""

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import Config
from ..data import scenes
from ..data.datasets import Dataset, open_dataset
from ..kernels import patch_entropy
from ..machine.backend import Backend
from ..machine.card import processes
from ..network.build import build
from ..network.features import Maps, batch_pixels, full_batch
from ..network.interface import Network
from ..network.model import RATES, DeepLabV3Plus
from ..network.windows import Windows
from ..stages.members import further
from ..stages.mirror import Mirrored
from ..stages.train import patch_loss
from ..strategies.select import STRATEGIES


@dataclass(frozen=True)
class Sizes:
    """Bytes that a run's data take, by arithmetic."""

    n_images: int
    n_val_images: int
    n_patches: int
    pool: int
    """The pool's images as uint8: in the store, and on the device where they are resident."""
    val: int
    """The validation images as uint8."""
    masks: int
    """The pool's masks, in the store."""
    val_masks: int
    """The validation masks: in the store, and on the device where they are resident."""
    features: int
    """A frozen backbone's maps of the pool, in the autocast dtype."""
    val_features: int

    @property
    def store(self) -> int:
        """On disk."""
        return self.pool + self.val + self.masks + self.val_masks


@dataclass(frozen=True)
class Placement:
    """Where images and frozen features live, and why."""

    images: str
    """``resident`` (on the device) or ``streamed`` (from the store)."""
    val_images: str
    val_masks: str
    cache: bool
    """The pool's frozen features are kept on the device."""
    val_cache: bool
    reason: str
    device_bytes: int
    """What all of that takes of the device."""


def measure(config: Config, backend: Backend, model: Network, n_images: int, n_val_images: int,
            masks: bool = True) -> Sizes:
    """The sizes of a run on that many images; ``model`` gives the shapes of its maps, whatever its weights."""
    grid, context = config.data.tiling(), config.data.context
    frame = grid.within(context)
    (c4, h4, w4), (c16, h16, w16) = model.map_shapes(frame.height, frame.width)
    maps = grid.per_image(context) * (c4 * h4 * w4 + c16 * h16 * w16) * backend.dtype.itemsize
    pixels = grid.height * grid.width
    return Sizes(n_images, n_val_images, n_images * grid.cells, 3 * pixels * n_images, 3 * pixels * n_val_images,
                 pixels * masks * n_images, pixels * n_val_images, maps * n_images, maps * n_val_images)


def place(config: Config, sizes: Sizes, budget: int, sharded: bool = False) -> Placement:
    """Decide what the device holds, within ``budget`` bytes; of the pool nothing where it is ``sharded``.

    The validation split comes first, which is read after each epoch, where the pool is once a round: its frozen
    features (with them nothing reads its images again) or else its images, then its masks. Then the pool's features, or
    else its images. An explicit choice is followed, whatever the budget.
    """
    left = budget
    frozen, wanted = config.model.freeze_backbone, config.model.cache_features

    def cached(size: int) -> bool:
        return frozen and (wanted == "always" or (wanted == "auto" and size <= left))

    val_cache = cached(sizes.val_features)
    left -= val_cache * sizes.val_features
    wanted_images = config.data.placement != "streamed"
    val_images = "resident" if not val_cache and wanted_images and sizes.val <= left else "streamed"
    left -= (val_images == "resident") * sizes.val
    val_masks = "resident" if sizes.val_masks <= left else "streamed"
    left -= (val_masks == "resident") * sizes.val_masks
    cache = not sharded and cached(sizes.features)
    left -= cache * sizes.features
    if config.data.placement != "auto":
        images, reason = config.data.placement, "asked for"
    elif sharded:
        images, reason = "streamed", "the workers hold the pool"
    elif cache:
        images, reason = "streamed", "read once: the features are kept on the device"
    elif sizes.pool <= left:
        images, reason = "resident", f"{gigabytes(sizes.pool)} fit into the budget of {gigabytes(budget)}"
    else:
        images, reason = "streamed", f"{gigabytes(sizes.pool)} do not fit into the budget of {gigabytes(budget)}"
    left -= (images == "resident") * sizes.pool
    return Placement(images, val_images, val_masks, cache, val_cache, reason, budget - left)


def gigabytes(size: int) -> str:
    """For people: ``4.68 GB``, ``190 MB``; 1 GB is 1e9 bytes."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


@dataclass(frozen=True)
class Extent:
    """How large a data set is, by its listing and the header of one file."""

    n_classes: int
    n_images: int
    """Of the pool."""
    n_val: int
    masks: bool
    """Whether the pool has some."""
    file_pixels: int
    """Of the first image file; 0 where there are no files."""
    n_given: int = 0
    """Images whose labels a run begins with."""

    @classmethod
    def of(cls, config: Config, dataset: Dataset | None = None) -> "Extent":
        """``dataset`` saves listing it again. Raises `InputError` for a data set that is not there."""
        data = config.data
        if data.dataset == "demo":  # listing it would draw its scenes
            return cls(len(scenes.CLASSES), data.n_images, data.n_val_images, True, 0)
        dataset = dataset or open_dataset(data)
        with Image.open(dataset.train[0].image) as file:  # reads the header
            pixels = file.width * file.height if data.tile is None else data.tile[0] * data.tile[1]
        return cls(len(dataset.class_names), len(dataset.train), len(dataset.val), dataset.labelled,
                   pixels, len(dataset.given or ()))


@dataclass(frozen=True)
class Needs:
    """What a run takes, in bytes."""

    store: int
    """On disk."""
    results: int
    """On disk, in its directory: the networks of its last rounds."""
    device: int
    """Of the device at its peak, beside what libraries take."""
    described: dict[str, str]
    """For people."""


def needs(config: Config, backend: Backend, extent: Extent) -> Needs:
    """What a run of this config needs: counted and computed, with nothing decoded, drawn or trained.

    Raises `InputError` for a network that cannot be built.
    """
    n_images, n_val, sharded = extent.n_images, extent.n_val, config.query.scoring == "sharded"
    # Shapes are all that matters, so that nothing is downloaded.
    model = build(extent.n_classes, config.model.without_weights)
    sizes = measure(config, backend, model, n_images, n_val, extent.masks)
    where = place(config, sizes, backend.budget_bytes, sharded)
    weights = sum(value.nbytes for value in model.state_dict().values())
    trained = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    features = "none: the backbone is trained"
    if config.model.freeze_backbone:
        kept = ("kept by the workers as far as they can" if sharded else
                "kept on the device" if where.cache else "computed again in every round")
        features = f"{gigabytes(sizes.features)} of the pool, {kept}; {gigabytes(sizes.val_features)} of the validation"
        features += " images, " + ("kept" if where.val_cache else "computed again in every evaluation")
    scoring = training = 0
    if isinstance(model, DeepLabV3Plus):
        scoring, training = peak_scoring(config, backend, model), peak_training(config, backend, model)
    members = further_networks(config) * weights  # all of them score together
    described = {
        "pool": f"{n_images:,} images, {sizes.n_patches:,} patches; {n_val:,} images to validate on",
        "store on disk": f"{gigabytes(sizes.store)} (pool {gigabytes(sizes.pool)}, validation {gigabytes(sizes.val)}, "
                         f"masks {gigabytes(sizes.masks + sizes.val_masks)})",
        "features": features,
        "placement": f"{where.images} ({where.reason})" + (
            f"; validation images {where.val_images}" if n_val and where.val_images != where.images else ""),
        **({"workers": _workers(config, backend, model, n_images)} if sharded else {}),
        "device memory": f"{gigabytes(where.device_bytes)} images, masks and features, "
                         f"{gigabytes(weights + 3 * trained)} network, gradients and Adam"
                         + (f", {gigabytes(members)} other members of the ensemble" if members else ""),
        "at its peak": (f"{gigabytes(scoring)} more in scoring, {gigabytes(training)} in a training step; libraries "
                        "take more" if training else "not counted: the network is not ours"),
    }
    device = where.device_bytes + weights + members + 3 * trained + max(scoring, training)
    return Needs(sizes.store, weights * len(config.seeds), device, described)


def further_networks(config: Config) -> int:
    """Networks that a round trains beyond its first: the members of an ensemble."""
    strategy = STRATEGIES.get(config.query.strategy)
    return 0 if strategy is None else further(strategy.needs, config.query.members)


def describe(config: Config, backend: Backend, extent: Extent) -> dict[str, str]:
    """`needs`, for people."""
    return needs(config, backend, extent).described


def _workers(config: Config, backend: Backend, model: Network, n_images: int) -> str:
    """Where the parts of a sharded pool go, and what each of this machine's processes holds of its part."""
    wanted = processes() if config.query.workers is None else config.query.workers
    if wanted == "cuda":
        return f"one for each of this machine's {torch.cuda.device_count()} CUDA devices, with equal parts of the pool"
    if isinstance(wanted, str):
        return f"those of the scheduler at {wanted}, with equal parts of the pool"
    budget_gb = backend.shared(config, wanted + 1).data.budget_gb
    assert budget_gb is not None
    part = measure(config, backend, model, math.ceil(n_images / wanted), 0)
    where = place(config, part, int(1e9 * budget_gb))
    held = f"{gigabytes(part.features)} of features kept" if where.cache else f"images {where.images}: {where.reason}"
    return f"{wanted} processes on this machine, each with {part.n_images:,} images at most, {held}"


def peak_scoring(config: Config, backend: Backend, model: DeepLabV3Plus) -> int:
    """Bytes that one scoring batch takes at its peak: the tensors of the network beside its weights.

    The very network runs on tensors without memory, and the living ones are counted. What libraries take for
    themselves (workspaces, reordered weights) comes on top.
    """
    frame = config.data.tiling().within(config.data.context)
    size = full_batch(config.data, batch_pixels(backend))

    def score(network: DeepLabV3Plus) -> None:
        pixels = torch.empty(size, frame.height, frame.width, 3).permute(0, 3, 1, 2)
        with torch.no_grad(), torch.autocast("cpu", backend.dtype, enabled=backend.dtype != torch.float32):
            low, high = network.features(pixels)
            logits = network.logits(low, high)
        patch_entropy(logits, (frame.height, frame.width), (frame.rows, frame.cols))

    return _peak(model.eval(), score)


def peak_training(config: Config, backend: Backend, model: DeepLabV3Plus) -> int:
    """Bytes that one training step takes at its peak, gradients included, beside weights and Adam's two moments.

    Every patch of the batch is taken to be from a frame of its own, as early rounds nearly have it.
    """
    frame, batch = config.data.tiling().within(config.data.context), config.train.batch_size
    if config.train.sample == "image":
        batch *= frame.cells
    batch *= 1 + config.train.unlabelled
    shapes = model.map_shapes(frame.height, frame.width)
    low_size, high_size = shapes[0][1:], shapes[1][1:]
    cached = config.model.freeze_backbone and not config.train.changes_images
    pretended = replace(backend, device=torch.device("cpu"))

    def step(network: DeepLabV3Plus) -> None:
        windows = Windows.of_grid(frame, low_size, high_size, RATES, pretended.device)

        def fresh() -> Maps:
            with pretended.autocast():
                return network.features(torch.empty(batch, frame.height, frame.width, 3).permute(0, 3, 1, 2))

        if cached:
            low, high = (torch.empty(batch, h, w, c, dtype=backend.dtype).permute(0, 3, 1, 2) for c, h, w in shapes)
        else:
            low, high = fresh()
        labels = torch.zeros(batch, frame.patch_height, frame.patch_width, dtype=torch.uint8)
        cells = torch.zeros(batch, dtype=torch.int64)
        weight = config.train.consistency
        mirrored = Mirrored(*fresh(), cells, weight) if weight else None
        patch_loss(network, low, high, windows, cells, labels, pretended, None, mirrored).backward()

    return _peak(model.train(), step)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _peak(model: DeepLabV3Plus, work: Callable[[DeepLabV3Plus], None]) -> int:
    network = copy.deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in network.modules():  # `Module.to` cannot swap in fake tensors; these are where the images are
            for name, held in module._parameters.items():
                if held is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty_like(held, device="cpu"),
                                                                   held.requires_grad)
            for name, value in module._buffers.items():
                module._buffers[name] = None if value is None else torch.empty_like(value, device="cpu")
        with _LiveBytes() as counted:
            work(network)
    return counted.peak
