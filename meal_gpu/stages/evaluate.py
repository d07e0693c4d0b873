"""Mean intersection over union on the validation split (paper, section 4)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.frames import HeldFrames
from ..machine.backend import Backend
from ..network.features import Features, logits_of
from ..network.fold import for_scoring
from ..network.model import DeepLabV3Plus
from ..timing import Progress, no_progress


@dataclass(frozen=True)
class Score:
    """IoU per class in class order, None for a class that neither truth nor prediction holds; their mean."""

    iou: tuple[float | None, ...]
    miou: float | None

    @classmethod
    def of(cls, confusion: Tensor) -> "Score":
        """From a confusion matrix int64 ``[truth, prediction]`` over the whole split.

        A class absent from both is left out of the mean: its IoU is 0/0, and counting it as 0 or 1 would say
        something about the data set, not about the network.
        """
        both = torch.stack([confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()]).tolist()
        iou = [hits / union if union > 0 else None for hits, union in zip(*both, strict=True)]
        present = [value for value in iou if value is not None]
        return cls(tuple(iou), sum(present) / len(present) if present else None)


def add_confusion(confusion: Tensor, truth: Tensor, prediction: Tensor) -> None:
    """Count pixels ``[B, H, W]`` into ``confusion`` int64 ``[C, C]``, in place.

    Truth outside ``0 … C - 1`` (void) is left out.
    """
    classes = len(confusion)
    truth, prediction = truth.flatten(1).long(), prediction.flatten(1).long()
    # Void goes into an extra bin instead of a boolean mask, and `bincount` would look for the largest: the shapes stay
    # fixed, and the device is not waited for. An image is counted by itself, so that fewer threads add to one number.
    bins = torch.where(truth < classes, truth * classes + prediction, classes * classes)
    counts = bins.new_zeros(len(bins), classes * classes + 1).scatter_add_(1, bins, bins.new_ones(1).expand_as(bins))
    confusion += counts.sum(0)[:-1].view(classes, classes)


def evaluate(model: DeepLabV3Plus, features: Features, masks: HeldFrames, num_classes: int, backend: Backend,
             progress: Progress = no_progress) -> Score:
    """IoU over all validation frames; masks uint8 frames, 255 = void. The one wait is for the confusion matrix."""
    return Score.of(confusion(model, features, masks, num_classes, backend, progress))


@torch.no_grad()
def confusion(model: DeepLabV3Plus, features: Features, masks: HeldFrames, num_classes: int, backend: Backend,
              progress: Progress = no_progress) -> Tensor:
    """The confusion matrix of one pass, int64 ``[truth, prediction]`` on the device, which is not waited for.

    Pixels that belong to no patch (see `Grid`) are left out, so that both contexts count the same pixels.
    """
    model, logits_of_batch = for_scoring(model, backend), backend.compiled(logits_of)
    grid = features.frames.grid
    height, width = grid.rows * grid.patch_height, grid.cols * grid.patch_width
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=features.frames.device)
    for frames, given in features.given():
        logits, _ = logits_of_batch(model, given, features.upsampling, backend)
        logits = logits[: frames.stop - frames.start]
        logits = F.interpolate(logits.float(), (grid.height, grid.width), mode="bilinear", align_corners=True)
        prediction = logits.argmax(1)
        add_confusion(counts, masks.cut(frames)[:, :height, :width], prediction[:, :height, :width])
        progress("evaluate", frames.stop, features.frames.count)
    return counts
