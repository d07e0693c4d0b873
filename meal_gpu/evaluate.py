"""Mean intersection over union on the validation split (paper, section 4)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend
from .features import Features
from .frames import HeldFrames
from .model import DeepLabV3Plus
from .timing import Progress, no_progress


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
        counts = confusion.double().cpu()
        union = counts.sum(0) + counts.sum(1) - counts.diag()
        iou = [float(counts[c, c] / union[c]) if union[c] > 0 else None for c in range(len(counts))]
        present = [value for value in iou if value is not None]
        return cls(tuple(iou), sum(present) / len(present) if present else None)


def add_confusion(confusion: Tensor, truth: Tensor, prediction: Tensor) -> None:
    """Count pixels into ``confusion`` int64 ``[C, C]``, in place; truth outside ``0 … C - 1`` (void) is left out."""
    classes = len(confusion)
    truth, prediction = truth.flatten().long(), prediction.flatten().long()
    # Void goes into an extra bin instead of a boolean mask: the shapes stay fixed and the device is not waited for.
    bins = torch.where(truth < classes, truth * classes + prediction, classes * classes)
    confusion += torch.bincount(bins, minlength=classes * classes + 1)[: classes * classes].view(classes, classes)


@torch.no_grad()
def evaluate(model: DeepLabV3Plus, features: Features, masks: HeldFrames, num_classes: int, backend: Backend,
             progress: Progress = no_progress) -> Score:
    """One confusion matrix over all validation frames; masks uint8 frames, 255 = void.

    Pixels that belong to no patch (see `Grid`) are left out, so that both contexts count the same pixels.
    """
    model.eval()
    grid = features.frames.grid
    height, width = grid.rows * grid.patch_height, grid.cols * grid.patch_width
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=features.frames.device)
    for frames, maps in features.scan(model):
        with backend.autocast():
            logits = model.logits(*maps)[: frames.stop - frames.start]
        logits = F.interpolate(logits.float(), (grid.height, grid.width), mode="bilinear", align_corners=True)
        prediction = logits.argmax(1)
        add_confusion(confusion, masks.cut(frames)[:, :height, :width], prediction[:, :height, :width])
        progress("evaluate", frames.stop, features.frames.count)
    return Score.of(confusion)
