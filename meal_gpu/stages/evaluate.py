"""Mean intersection over union on the validation split (paper, section 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.frames import HeldFrames
from ..kernels import confusion_counts
from ..machine.backend import Backend
from ..network.features import Features, logits_of
from ..network.fold import for_scoring
from ..network.interface import Network
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


def evaluate(model: Network, features: Features, masks: HeldFrames, num_classes: int, backend: Backend,
             progress: Progress = no_progress) -> Score:
    """IoU over all validation frames; masks uint8 frames, 255 = void. The one wait is for the confusion matrix."""
    return Score.of(confusion(model, features, masks, num_classes, backend, progress))


@torch.no_grad()
def confusion(model: Network, features: Features, masks: HeldFrames, num_classes: int, backend: Backend,
              progress: Progress = no_progress) -> Tensor:
    """The confusion matrix of one pass, int64 ``[truth, prediction]`` on the device, which is not waited for.

    The logits are upsampled, compared and counted by one kernel, `kernels.confusion_counts`: a full-resolution tensor
    is never made. Pixels that belong to no patch (see `Grid`) are left out, so that both contexts count the same
    pixels.
    """
    model, logits_of_batch = for_scoring(model, backend), backend.compiled(logits_of)
    grid = features.frames.grid
    height, width = grid.rows * grid.patch_height, grid.cols * grid.patch_width
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=features.frames.device)
    for (frames, given), truth in zip(features.given(), masks.passed(features.parts), strict=True):
        logits, _ = logits_of_batch(model, given, features.upsampling, backend)
        confusion_counts(logits[: frames.stop - frames.start], truth[:, :height, :width], (grid.height, grid.width),
                         align_corners=model.align_corners, counts=counts)
        progress("evaluate", frames.stop, features.frames.count)
    return counts
