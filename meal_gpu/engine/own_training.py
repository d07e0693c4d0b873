"""Training that is somebody's own (``train.factory``): they get the labelled patches, and give back the network."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, first_line
from ..grid import Grid
from ..network.factory import find
from ..network.interface import Network
from ..network.own import OwnNetwork
from ..network.reading import said
from ..randomness import derive, of_member
from ..stages.evaluate import Score
from ..stages.train import History
from .experiment import Experiment

_log = logging.getLogger("meal_gpu")


@dataclass(frozen=True)
class Patches:
    """What is labelled in a round, on the host: patch i is ``images[index[i]]`` in ``boxes[i]``, labelled `labels`."""

    images: np.ndarray
    """uint8 RGB ``[k, H, W, 3]``: those that have a labelled patch."""
    names: tuple[str, ...]
    """Of these images."""
    index: Tensor
    """int64 ``[n]``: the image of each patch."""
    boxes: Tensor
    """int64 ``[n, 4]``: its pixels, ``[y0, x0, y1, x1]``, half open."""
    labels: Tensor
    """uint8 ``[n, patch_height, patch_width]``: classes, 255 where there is none."""
    class_names: tuple[str, ...]
    epochs: int
    """``train.epochs`` or ``train.final_epochs``."""
    seed: int
    """Of this round. PyTorch's generator has been seeded when the function is called; seed others with this."""
    evaluate: Callable[[], float | None]
    """The validation mIoU of the network as it is now; None where nothing is there to validate on."""

    def masks(self) -> Tensor:
        """uint8 ``[k, H, W]``: the labels in their images, 255 everywhere else."""
        masks = torch.full(self.images.shape[:3], 255, dtype=torch.uint8)
        for i, (y0, x0, y1, x1) in enumerate(self.boxes.tolist()):
            masks[self.index[i], y0:y1, x0:x1] = self.labels[i]
        return masks


def train_by(experiment: Experiment, model: Network, ids: Tensor, labels: Tensor, seed: int, k: int,
             validate: Callable[[], Score | None], member: int = 0) -> History[Score]:
    """Let ``train.factory`` train the network of round k; its weights are taken over. As `stages.train.train`."""
    name, path = experiment.config.train.factory, experiment.config.model.path
    assert name is not None
    function = find("train.factory", name, path)

    def miou() -> float | None:
        score = validate()
        return None if score is None else score.miou

    fixed = {key: value.clone() for key, value in model.state_dict().items() if model.constant(key)}
    network = model.module if isinstance(model, OwnNetwork) else model
    model.train()
    experiment.progress("train", 0, 1)
    try:
        made = function(network, labelled_patches(experiment, ids, labels, seed, k, miou, member))
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's code raises
        raise InputError(f"train.factory '{name}' failed in round {k}: {type(error).__name__}: {first_line(error)}."
                         ) from error
    take_over(model, network, made, name)
    changed = [key for key, value in model.state_dict().items() if key in fixed and not torch.equal(value, fixed[key])]
    if changed:
        raise InputError(f"train.factory '{name}' changed {changed[0]}, which model.freeze_backbone keeps as it is: "
                         "train what requires gradients alone, with the rest in eval mode, or do not freeze it.")
    model.to(experiment.backend.device)  # a training loop may leave it elsewhere
    experiment.progress("train", 1, 1)
    score, epochs = validate(), experiment.epochs(k)
    return History([{"epoch": epochs, "loss": None, "miou": score.miou if score else None}], epochs, score, score)


def labelled_patches(experiment: Experiment, ids: Tensor, labels: Tensor, seed: int, k: int,
                     evaluate: Callable[[], float | None], member: int = 0) -> Patches:
    grid: Grid = experiment.grid
    ids = ids.cpu()
    images, index = torch.unique(ids // grid.cells, return_inverse=True)
    boxes = torch.tensor([grid.box(patch % grid.cells) for patch in ids.tolist()])
    held = np.stack([experiment.stores.train.images[i] for i in images.tolist()])
    return Patches(held, tuple(experiment.train.names[i] for i in images.tolist()), index, boxes, labels.cpu(),
                   experiment.class_names, experiment.epochs(k),
                   derive(seed, k, of_member("train", member)) % 2**32, evaluate)


def take_over(model: Network, given: nn.Module, made: Any, name: str) -> None:
    """Give ``model`` the weights of what the function returned. Raises `InputError` where it is another network."""
    if not isinstance(made, nn.Module):
        raise InputError(f"train.factory '{name}' returned {said(made)}: return the trained torch.nn.Module.")
    if made is given:
        return
    try:
        model.load_state_dict(made.state_dict())
    except RuntimeError:
        theirs, ours = made.state_dict(), model.state_dict()
        other = sorted(theirs.keys() ^ ours.keys()) or [key for key in ours if ours[key].shape != theirs[key].shape]
        raise InputError(f"train.factory '{name}' returned another network than it was given: {other[0]} differs. "
                         "Return that network, or one with its tensors.") from None
