"""Train a network from scratch on the labelled patches (paper, section 4.2)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import TrainConfig
from ..errors import InputError
from ..machine.backend import Backend
from ..network.features import Features, window_pixels
from ..network.interface import Network
from ..network.windows import Windows
from ..timing import Progress, no_progress
from .lessons import Lessons
from .mirror import Mirrored
from .recipe import MovingMean, optimiser_of, schedule_of, trained_state


class Measured(Protocol):
    """What an evaluation returns; training only compares its mIoU."""

    @property
    def miou(self) -> float | None: ...


S = TypeVar("S", bound=Measured)


@dataclass
class History(Generic[S]):
    """What happened in a training. The network is left with the weights of the best epoch."""

    epochs: list[dict[str, float | int | None]] = field(default_factory=list)
    """Per evaluated epoch: epoch, mean loss over the epoch, mIoU."""
    best_epoch: int = 0
    best: S | None = None
    """At the best epoch by validation mIoU, which the paper reports. Chosen on the validation set, so optimistic."""
    last: S | None = None
    """After the last epoch."""


def train(model: Network, features: Features, ids: Tensor, labels: Tensor, config: TrainConfig, epochs: int,
          backend: Backend, order: torch.Generator, evaluate: Callable[[], S | None],
          progress: Progress = no_progress, filled: Tensor | None = None) -> History[S]:
    """Adam on the cross-entropy of the labelled pixels, without augmentation or weight decay, unless the config's
    recipe says otherwise (`stages.recipe`).

    Parameters
    ----------
    ids, labels
        Labelled patches int64 ``[n]`` and their labels uint8 ``[n, patch_height, patch_width]``, 255 = void.
    epochs
        Passes over the labelled patches; more where ``config.min_steps`` asks for them.
    order
        Generator of the samples' order. Dropout draws from PyTorch's global generator.
    evaluate
        Called every ``config.eval_every`` epochs and after the last; returns None where there is nothing to validate
        on, and then the last epoch counts as the best.
    filled
        What images fill of their patches, int64 ``[patches of the pool, 2]`` on the host; None where they fill all.
        Where more than what is labelled is learned on, nothing beside an image is.

    Raises
    ------
    InputError
        The loss is not finite, or fewer than two patches are labelled (batch-norm needs two).
    """
    if len(ids) < 2:
        raise InputError(f"{len(ids)} patch is labelled and batch-norm needs at least 2 to train on: use a finer "
                         "data.grid or a larger query.n_initial_images.")
    host_ids = ids.cpu()
    per_epoch = _steps(host_ids, features.frames.grid.cells, config)
    epochs = config.lasting(epochs, per_epoch)
    optimiser, mean = optimiser_of(model, config), MovingMean(model, config.ema)
    schedule = schedule_of(optimiser, config, epochs, per_epoch)
    lessons = Lessons.of(model, features, ids, host_ids, labels, config, order, mean, filled)

    def stepped() -> None:
        schedule.step()
        mean.follow()

    history: History[S] = History()
    kept: dict[str, Tensor] = {}
    for epoch in range(1, epochs + 1):
        model.train()
        batches = list(_batches(host_ids, features.frames.grid.cells, config, order))
        with backend.repeatable():
            mean_loss = float(train_epoch(model, features, ids, labels, batches, host_ids, optimiser, backend,
                                          stepped, lessons))
        if not math.isfinite(mean_loss):
            raise InputError(f"The training loss is {mean_loss} in epoch {epoch}: training diverged with train.lr "
                             f"{config.lr:g}. Lower it, or use model.precision: float32.")
        if epoch % config.eval_every == 0 or epoch == epochs:
            with mean.in_place():
                score = evaluate()
                miou = score.miou if score else None
                history.epochs.append({"epoch": epoch, "loss": mean_loss, "miou": miou})
                history.last = score
                if history.best is None or history.best.miou is None or (miou is not None and miou > history.best.miou):
                    history.best, history.best_epoch = score, epoch
                    kept = {name: value.clone() for name, value in trained_state(model).items()}
        progress("train", epoch, epochs)
    model.load_state_dict(kept, strict=False)
    return history


def train_epoch(model: Network, features: Features, ids: Tensor, labels: Tensor, batches: Sequence[Tensor],
                host_ids: Tensor, optimiser: torch.optim.Optimizer, backend: Backend,
                stepped: Callable[[], None] = lambda: None, lessons: Lessons | None = None) -> Tensor:
    """A step on each of the batches, int64 positions in ``ids`` on the host; the mean loss, float32 ``[]``.

    ``host_ids`` are the ids again, on the host; ``stepped`` is called after each step; ``lessons`` show the steps other
    images, or more patches. Nothing here waits for the device: what the steps need of the host is sent before the
    first.
    """
    lessons = lessons or Lessons(features, ids, labels, host_ids=host_ids)
    losses, compiled_loss = torch.empty(len(batches), device=ids.device), backend.compiled(patch_loss)
    for step, lesson in enumerate(lessons.read(model, batches)):
        loss = compiled_loss(model, lesson.low, lesson.high, features.windows, lesson.cells, lesson.labels, backend,
                             lesson.labelled, lesson.mirrored)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)  # the next step may find gradients and loss overwritten
        stepped()
        losses[step] = loss.detach()
    return losses.mean()


def patch_loss(model: Network, low: Tensor, high: Tensor, windows: Windows, cells: Tensor, labels: Tensor,
               backend: Backend, labelled: int | None = None, mirrored: Mirrored | None = None) -> Tensor:
    """What a step of training descends: the loss of a batch of patches, float32 ``[]``.

    Maps ``[B, C, h, w]`` of each patch's frame; ``windows`` of the grid; the patches' cells int64 ``[B]`` and labels
    uint8 ``[B, patch_height, patch_width]``. Behind the first ``labelled`` patches they are pseudo-labels, whose loss
    is added by the part of their pixels that have one. What is said of the patches ``mirrored`` has that loss too, and
    that of differing: EquAL's, which pulls each of the two to the other held fast, has the gradients of a difference
    that pulls both.
    """
    def loss_of(pixels: Tensor) -> Tensor:
        if labelled is None or labelled == len(labels):
            return cross_entropy(pixels.float(), labels)
        believed = labels[labelled:]
        share = (believed != 255).float().mean()
        return cross_entropy(pixels[:labelled].float(), labels[:labelled]) + share * cross_entropy(
            pixels[labelled:].float(), believed)

    pixels = window_pixels(model, low, high, windows.of(cells), backend)
    if mirrored is None:
        return loss_of(pixels)
    others = window_pixels(model, mirrored.low, mirrored.high, windows.of(mirrored.cells), backend).flip(2)
    return loss_of(pixels) + loss_of(others) + mirrored.weight * F.mse_loss(pixels.float(), others.float())


def cross_entropy(pixels: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the batch's labelled pixels: logits ``[B, h, w, C]``, labels uint8 ``[B, h, w]``.

    A batch of void only has loss 0, where the mean would be 0/0 and would ruin every weight.
    """
    target = labels.flatten().long()
    # Summed apart: PyTorch's own sum of a matrix [pixels, classes] is one thread block on a GPU, forward and backward.
    total = F.cross_entropy(pixels.flatten(0, 2), target, ignore_index=255, reduction="none").sum()
    return total / (target != 255).sum().clamp(min=1)


def _batches(ids: Tensor, cells: int, config: TrainConfig, order: torch.Generator) -> Iterator[Tensor]:
    """Positions in ``ids`` for one epoch, in random order.

    The last batch is dropped when it is not full (one of a single patch would break batch-norm), except when there
    are fewer samples than one batch.
    """
    samples = _samples(ids, cells, config)
    shuffled = torch.randperm(len(samples), generator=order).tolist()
    size = min(config.batch_size, len(samples))
    for start in range(0, len(samples) - size + 1, size):
        yield torch.cat([samples[i] for i in shuffled[start : start + size]])


def _steps(ids: Tensor, cells: int, config: TrainConfig) -> int:
    """How many batches an epoch has."""
    samples = len(_samples(ids, cells, config))
    return samples // min(config.batch_size, samples)


def _samples(ids: Tensor, cells: int, config: TrainConfig) -> list[Tensor]:
    """Positions in ``ids`` of each thing that ``batch_size`` counts."""
    if config.sample == "patch":
        return list(torch.arange(len(ids)).unsqueeze(1))
    frames = ids // cells
    return [(frames == frame).nonzero().squeeze(1) for frame in frames.unique()]
