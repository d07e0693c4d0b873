"""Train a network from scratch on the labelled patches (paper, section 4.2)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend
from .config import TrainConfig
from .errors import InputError
from .features import Features
from .model import DeepLabV3Plus
from .timing import Progress, no_progress
from .windows import along


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


def train(model: DeepLabV3Plus, features: Features, ids: Tensor, labels: Tensor, config: TrainConfig, epochs: int,
          backend: Backend, order: torch.Generator, evaluate: Callable[[], S | None],
          progress: Progress = no_progress) -> History[S]:
    """Adam on the cross-entropy of the labelled pixels, without augmentation or weight decay.

    Parameters
    ----------
    ids, labels
        Labelled patches int64 ``[n]`` and their labels uint8 ``[n, patch_height, patch_width]``, 255 = void.
    epochs
        Passes over the labelled patches.
    order
        Generator of the samples' order. Dropout draws from PyTorch's global generator.
    evaluate
        Called every ``config.eval_every`` epochs and after the last; returns None where there is nothing to validate
        on, and then the last epoch counts as the best.

    Raises
    ------
    InputError
        The loss is not finite, or fewer than two patches are labelled (batch-norm needs two).
    """
    if len(ids) < 2:
        raise InputError(f"{len(ids)} patch is labelled and batch-norm needs at least 2 to train on: use a finer "
                         "data.grid or a larger query.n_initial_images.")
    cells, windows = features.frames.grid.cells, features.windows()
    host_ids = ids.cpu()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, config.lr_decay_every or epochs, config.lr_decay)
    history: History[S] = History()
    kept: dict[str, Tensor] = {}
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        batches = list(_batches(host_ids, cells, config, order))
        # A frame that several patches of a batch come from goes through the backbone once.
        frames = [torch.unique(host_ids[batch] // cells, return_inverse=True) for batch in batches]
        maps = features.read(model, [distinct for distinct, _ in frames])
        for batch, (_, frame_of), both in zip(batches, frames, maps, strict=True):
            batch = batch.to(ids.device)
            at = windows.of(ids[batch] % cells)
            with backend.autocast():
                low, high = (part[frame_of.to(ids.device)] for part in both)
                logits = model.window_logits(low, high, at)
                pixels = along(at.rows.pixels, at.cols.pixels, logits.permute(0, 2, 3, 1))
            loss = _loss(pixels.float(), labels[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        schedule.step()
        mean_loss = float(torch.stack(losses).mean())
        if not math.isfinite(mean_loss):
            raise InputError(f"The training loss is {mean_loss} in epoch {epoch}: training diverged with train.lr "
                             f"{config.lr:g}. Lower it, or use model.precision: float32.")
        if epoch % config.eval_every == 0 or epoch == epochs:
            score = evaluate()
            miou = score.miou if score else None
            history.epochs.append({"epoch": epoch, "loss": mean_loss, "miou": miou})
            history.last = score
            if history.best is None or history.best.miou is None or (miou is not None and miou > history.best.miou):
                history.best, history.best_epoch = score, epoch
                kept = _trained_state(model)
        progress("train", epoch, epochs)
    model.load_state_dict(kept, strict=False)
    return history


def _loss(pixels: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the batch's labelled pixels: logits ``[B, h, w, C]``, labels uint8 ``[B, h, w]``.

    A batch of void only has loss 0, where the mean would be 0/0 and would ruin every weight.
    """
    target = labels.flatten().long()
    total = F.cross_entropy(pixels.flatten(0, 2), target, ignore_index=255, reduction="sum")
    return total / (target != 255).sum().clamp(min=1)


def _batches(ids: Tensor, cells: int, config: TrainConfig, order: torch.Generator) -> Iterator[Tensor]:
    """Positions in ``ids`` for one epoch, in random order.

    The last batch is dropped when it is not full (one of a single patch would break batch-norm), except when there
    are fewer samples than one batch.
    """
    if config.sample == "patch":
        samples = list(torch.arange(len(ids)).unsqueeze(1))
    else:
        frames = ids // cells
        samples = [(frames == frame).nonzero().squeeze(1) for frame in frames.unique()]
    shuffled = torch.randperm(len(samples), generator=order).tolist()
    size = min(config.batch_size, len(samples))
    for start in range(0, len(samples) - size + 1, size):
        yield torch.cat([samples[i] for i in shuffled[start : start + size]])


def _trained_state(model: DeepLabV3Plus) -> dict[str, Tensor]:
    """A copy of what training changes: not of a frozen backbone."""
    return {name: value.clone() for name, value in model.state_dict().items()
            if not (model.freeze_backbone and name.startswith("backbone."))}
