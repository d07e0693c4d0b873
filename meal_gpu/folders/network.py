"""The network that a run has left, ready for other images."""

import json
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load as from_safetensors
from torch import Tensor

from ..config import Config
from ..data.frames import HeldFrames
from ..errors import InputError, first_line
from ..files import digest, read_own
from ..machine.backend import Backend
from ..network.build import build
from ..network.features import Features, logits_of
from ..network.fold import for_scoring
from ..network.interface import Network
from .enlarge import beside_each_other

FILE = "model.safetensors"
_BYTES = 2**34


@dataclass(frozen=True, eq=False)
class Left:
    """Of a seed."""

    model: Network
    round: int | None
    """Which made it; None in runs that did not say."""
    digest: str
    """Of the file."""


def load(directory: Path, config: Config, n_classes: int, device: torch.device) -> Left:
    """The network of a seed's last round. Raises `InputError` where there is none, or it is of another run."""
    file = directory / FILE
    try:
        content = read_own(file, _BYTES)
    except FileNotFoundError:
        raise InputError(f"{file} is not there: the run has not finished a round, or only its small files were copied. "
                         f"Go on with it: meal-gpu run --resume {shlex.quote(str(directory.parent))}") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    model = build(n_classes, config.model.without_weights)
    try:
        model.load_state_dict(from_safetensors(content))
        (length,) = struct.unpack_from("<Q", content)
        made = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("round")
    except Exception as error:  # safetensors and PyTorch raise whatever the damage leads them to
        raise InputError(f"{file} is not a network of this run ({first_line(error)}). Restore it, or let --resume make "
                         "it again.") from None
    return Left(model.to(device).eval(), None if made is None else int(made), digest(content))


@torch.no_grad()
def logits(model: Network, images: np.ndarray, config: Config, backend: Backend, batch: int) -> list[Tensor]:
    """Logits at stride 4 of images uint8 ``[n, H, W, 3]`` in the context that they were trained in, one ``[C, h, w]``
    each; where patches are seen alone, their maps beside each other. ``batch`` as in `Features.of`."""
    grid, context = config.data.tiling(), config.data.context
    frames = HeldFrames.of(torch.from_numpy(images), grid, context, backend.device)
    features, found = Features.of(frames, model, backend, False, batch=batch), list[Tensor]()
    network, made = for_scoring(model, backend), list[Tensor]()
    for part, given in features.given():
        out, _ = logits_of(network, given, features.upsampling, backend)
        if not network.align_corners:  # whoever enlarges them takes corners for aligned, which whole frames are anyway
            out = F.interpolate(out.float(), (frames.grid.height, frames.grid.width), mode="bilinear")
        made.append(out[: part.stop - part.start])
    for image in torch.cat(made).split(frames.per_image):
        found.append(image[0] if context == "image" else beside_each_other(image, grid.rows, grid.cols))
    return found
