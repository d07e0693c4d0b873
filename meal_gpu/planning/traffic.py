"""What a round's stages launch and move, counted by running them on tensors without memory.

For budgets and for the host's time: a stage at full size, on a machine that could not run it. An eager GPU starts a
kernel for nearly every operation that is no view. Counted is the code that a CPU runs, with the casts of bfloat16;
on CUDA each of three dropouts is four launches less.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import Config
from ..data.frames import HeldFrames
from ..machine.backend import Backend
from ..network.features import DEVICE_BATCH_PIXELS, Features, Maps, images_per_batch
from ..network.interface import Network
from ..network.model import DeepLabV3Plus
from ..stages.evaluate import confusion
from ..stages.predict import predict
from ..stages.train import train_epoch

_ALLOCATES = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach"})
"""Start nothing on a device."""
_COPIES = frozenset({"clone", "copy_", "_to_copy"})
_ONE_BLOCK = frozenset({"nll_loss_forward", "nll_loss_backward"})
NO_REDUCTION = 0
"""The value of ``reduction="none"`` in ATen."""


class Traffic(TorchDispatchMode):
    """While entered, counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        """Operations that are no views."""
        self.names: set[str] = set()
        """Their names."""
        self.bytes = 0
        """Read and written by them, each tensor as large as it is (an expanded one as what it holds)."""
        self.largest = 0, ""
        """Bytes of the largest tensor that an operation made, and its name."""
        self.expanded = 0
        """Bytes of the largest copy of an expanded tensor: values that stood in memory once, written many times."""
        self.one_block_rows = 0
        """Most rows of a matrix that `nll_loss` reduced, which a GPU does in one thread block."""
        self.copied = 0
        """Bytes that ``model.compile`` would copy where these operations are recorded as graphs; see `of_stages`."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if function.is_view or function.namespace == "prim" or name in _ALLOCATES:
            return result
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if name == "_unsafe_view" or not given + made:
            return result
        self.launches += 1
        self.names.add(name)
        self.bytes += sum(map(_held, given)) + sum(map(_held, made))
        known = {value.untyped_storage()._cdata for value in given}
        for value in made:
            if value.untyped_storage()._cdata not in known:
                self.largest = max(self.largest, (_held(value), name))
        if name in _COPIES and any(0 in value.stride() and value.numel() > _held(value) // value.itemsize
                                   for value in given):
            self.expanded = max(self.expanded, *map(_held, made))
        if name in _ONE_BLOCK:
            # (logits, target, weight, reduction, …), before which the backward pass has the gradient.
            rows, reduction = (args[0], args[3]) if name == "nll_loss_forward" else (args[1], args[4])
            if reduction != NO_REDUCTION:
                self.one_block_rows = max(self.one_block_rows, len(rows))
        return result


def _held(value: Tensor) -> int:
    """Bytes of the values that a tensor has in memory."""
    n = 1
    for size, stride in zip(value.shape, value.stride(), strict=True):
        n *= size if stride or size == 0 else 1
    return n * value.itemsize


class _Given(TorchDispatchMode):
    """While entered, sees the tensors that stood before and are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) not in self._made:
                self.read[id(value)] = value
        self._made |= {id(value): value for value in tree_leaves(result)  # kept, so that no other gets its id
                       if isinstance(value, Tensor) and id(value) not in self.read}
        return result


@dataclass(frozen=True)
class _Recorded(Backend):
    """Runs what may be recorded as a graph, and knows the bytes that its replay would copy: all that it is given.

    PyTorch's ``cudagraphs`` treats no input as one that stays where it is, parameters and statistics among them.
    """

    copied: list[int] = field(default_factory=list)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with _Given() as given:
                result = function(*args, **kwargs)
            self.copied.append(sum(map(_held, given.read.values())))
            return result

        return call


def of_stages(config: Config, classes: int) -> dict[str, Traffic]:
    """One batch of ``scoring`` and of ``evaluation``, `images_per_batch` images each, and one step of ``training``.

    Each patch of the step is of a frame of its own, as early rounds nearly have it. ``copied`` is what
    ``model.compile: graphs`` would add for each of them.
    """
    grid, context = config.data.tiling(), config.data.context
    said = "counted"
    pretended = _Recorded(torch.device("cpu"), said, torch.bfloat16, said, "umap-learn", said, "sklearn", said,
                          "torchvision", said, "mapped", said, 0, config.model.fold_norms)
    with torch.device("meta"):
        model = DeepLabV3Plus(classes, config.model.without_weights)
    frame = grid.within(context)
    shapes = model.map_shapes(frame.height, frame.width)
    n, frozen = images_per_batch(grid, DEVICE_BATCH_PIXELS), config.model.freeze_backbone

    def features(images: int) -> Features:
        frames = HeldFrames.of(torch.empty(images, grid.height, grid.width, 3, dtype=torch.uint8), grid, context,
                               pretended.device)
        made = _Distinct.of(frames, model, pretended, False, batch=images * frames.per_image)
        if frozen:
            low, high = (torch.empty(frames.count, h, w, c, dtype=pretended.dtype) for c, h, w in shapes)
            made = replace(made, cache=(low, high))
        for constant in (made.upsampling, made.means, made.windows, frames._statistics):
            assert constant is not None  # brought to the device once, and not counted
        return made

    def score() -> Callable[[], object]:
        of_pool = features(n)
        return lambda: predict(model, of_pool, {"score"}, config.query.score, pretended)

    def evaluate() -> Callable[[], object]:
        of_val = features(n)
        masks = HeldFrames.of(torch.empty(n, grid.height, grid.width, dtype=torch.uint8), grid, context,
                              pretended.device)
        return lambda: confusion(model, of_val, masks, classes, pretended)

    def step() -> Callable[[], object]:
        size = config.train.batch_size
        samples = size * (frame.cells if config.train.sample == "image" else 1)
        of_pool = features(-(-size // grid.per_image(context)))
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
        labels = torch.empty(samples, grid.patch_height, grid.patch_width, dtype=torch.uint8)
        ids = torch.empty(samples, dtype=torch.int64)
        model.train()
        return lambda: train_epoch(model, of_pool, ids, labels, [torch.empty(samples, dtype=torch.int64)], ids,
                                   optimiser, pretended)

    found = {}
    with _without_memory(model):
        for name, ready in (("scoring", score), ("evaluation", evaluate), ("training", step)):
            work = ready()
            work()  # Adam makes its moments in the first step
            pretended.copied.clear()
            with Traffic() as found[name]:
                work()
            found[name].copied = sum(pretended.copied)
    return found


class _Distinct(Features):
    """Every frame of a batch is another: which are alike, a tensor without memory cannot say."""

    def read(self, model: Network, batches: Iterable[Tensor],
             changed: Callable[[Tensor], Tensor] = lambda pixels: pixels) -> Iterator[Maps]:
        if self.cache is not None:
            yield from super().read(model, batches)
            return
        for pixels in self.frames.read(batches):
            with self.backend.autocast():
                yield model.features(changed(pixels))


@contextmanager
def _without_memory(model: DeepLabV3Plus) -> Iterator[None]:
    """Fake tensors of the CPU, the network's weights among them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():  # `Module.to` cannot swap in fake tensors
            for name, held in module._parameters.items():
                if held is not None:
                    fake = torch.empty_like(held, device="cpu")
                    module._parameters[name] = torch.nn.Parameter(fake, held.requires_grad)
            for name, value in module._buffers.items():
                module._buffers[name] = None if value is None else torch.empty_like(value, device="cpu")
        yield
