"""What a patch takes to label: clicks, counted on masks that people gave and expected where there are none yet."""

import torch
from torch import Tensor

from ..grid import Grid
from ..stages.statistics import Tiles, boundary, components
from .view import PoolView

SPACING = 10.0
"""Pixels of boundary per click. Assumed: no data set here tells how its masks were drawn."""
NEEDS = frozenset({"boundary", "components"})
FEW = 8
"""Labelled patches below which the predicted outlines are taken as they are."""


def clicks_of(labels: Tensor) -> Tensor:
    """Of masks uint8 ``[m, h, w]``: one per region and one per `SPACING` pixels of boundary, float32 ``[m]``.

    A click is set in the middle of what it encloses or on an outline, whatever tool takes it.
    """
    height, width = labels.shape[1:]
    tiles = Tiles.of(Grid(1, 1, height, width), (height, width), labels.device)
    masks = labels.long()
    return components(masks, tiles) + boundary(masks, tiles) / SPACING


def expected_clicks(view: PoolView) -> Tensor:
    """Of every patch, float32 ``[n_patches]``, at least 1: predicted regions and boundaries, weighed as labelled
    patches tell (least squares with weights of at least 0).

    A network that smooths small things away tells less boundary than there is, and learns so by how much. No less than
    the lower decile of the pool: dividing by nearly nothing would ask for road and sky.
    """
    outlines = torch.stack([view.whole("components"), view.whole("boundary") / SPACING], 1).double()
    weights = torch.tensor([0.0, 1, 1], dtype=torch.float64, device=outlines.device)
    rows = torch.cat([torch.ones_like(outlines[:, :1]), outlines], 1)
    if view.clicks is not None and view.n_labelled >= FEW:
        weights = _weights(rows[view.labelled_ids], view.clicks().double())
    clicks = (rows @ weights).float()
    return torch.maximum(clicks, clicks.quantile(0.1) if len(clicks) < 2**24 else clicks.mean() / 10).clamp_min(1)


def _weights(rows: Tensor, clicks: Tensor) -> Tensor:
    from scipy.optimize import nnls

    found, _ = nnls(rows.cpu().numpy(), clicks.cpu().numpy())
    return torch.from_numpy(found).to(rows.device)
