"""What is labelled already, in the forms in which people have it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, did_you_mean
from ..grid import Grid

Labelled = Tensor | np.ndarray | Iterable[int | tuple[int | str, int, int] | Mapping[str, Any]] | None


def labelled_ids(labelled: Labelled, grid: Grid, names: Sequence[str]) -> Tensor:
    """int64 ``[m]``, ascending, of patches in any of the forms in which they are given."""
    total = len(names) * grid.cells
    if labelled is None:
        return torch.zeros(0, dtype=torch.int64)
    if isinstance(labelled, np.ndarray):
        labelled = torch.from_numpy(labelled)
    if isinstance(labelled, Tensor) and labelled.dtype == torch.bool:
        if labelled.numel() != total:
            raise InputError(f"labelled is bool {list(labelled.shape)}: give [{len(names)}, {grid.cells}], one per "
                             "patch.")
        return labelled.reshape(-1).nonzero().view(-1).cpu()
    given = labelled.tolist() if isinstance(labelled, Tensor) else list(labelled)
    number = {name: i for i, name in enumerate(names)}
    ids = []
    for patch in given:
        if isinstance(patch, Mapping):
            patch = (patch["image"], patch["row"], patch["col"])
        if isinstance(patch, (tuple, list)) and len(patch) == 3:
            image, row, col = patch
            if isinstance(image, str):
                if image not in number:
                    raise InputError(f"labelled names image '{image}', which is not in the pool."
                                     f"{did_you_mean(image, names)}")
                image = number[image]
            inside = 0 <= image < len(names) and 0 <= row < grid.rows and 0 <= col < grid.cols
            ids.append(image * grid.cells + row * grid.cols + col if inside else -1)
        elif isinstance(patch, (int, np.integer)):
            ids.append(int(patch))
        else:
            raise InputError(f"labelled holds {patch!r}: give ids, (image, row, col), or patches of an answer.")
        if not 0 <= ids[-1] < total:
            raise InputError(f"labelled holds {patch!r}, which is no patch: there are {len(names)} images of "
                             f"{grid.rows} x {grid.cols} patches.")
    return torch.tensor(sorted(set(ids)), dtype=torch.int64)
