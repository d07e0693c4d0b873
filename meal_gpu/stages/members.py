"""What networks that were trained apart disagree about (an ensemble), in one pass over the pool.

All members look at a batch before the next one comes, and of what they say only running sums are kept: memory does not
grow with their number, but for their weights.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..machine.backend import Backend
from ..network.features import Given, Maps, maps_of
from ..network.interface import Network, Upsampling

DISAGREEMENTS = {
    "disagreement": "H(mean p) - mean H(p) over the members of an ensemble, nats",
    "vote_entropy": "entropy of the shares of members that predict each class, nats",
    "variation": "the share of members that do not predict what most of them predict",
}
"""Fields of a pass that takes several networks, means over the patch, float32 ``[n_patches]``."""


def further(needs: Collection[str], members: int) -> int:
    """How many networks a round trains beyond its first, of ``query.members``, for what a strategy needs."""
    return 0 if DISAGREEMENTS.keys().isdisjoint(needs) else members - 1


def disagreements(names: Collection[str], logits: Iterable[Tensor]) -> list[Tensor]:
    """Those of `DISAGREEMENTS` that are named, in their order there, of members' logits ``[B, C, h, w]``: float32
    ``[B, h, w]``, at least 0.

    Probabilities are averaged, not logits, in float32. A tie of votes goes to nobody: only their numbers count.
    """
    p_sum = h_sum = votes = torch.zeros(())
    n = 0
    for n, one in enumerate(logits, 1):
        p, first = one.float().softmax(1), n == 1
        h = torch.special.entr(p).sum(1)
        vote = (p.argmax(1)[:, None] == torch.arange(p.shape[1], device=p.device)[:, None, None]).float()
        p_sum, h_sum, votes = (p, h, vote) if first else (p_sum + p, h_sum + h, votes + vote)
    shares = votes / n
    found = {
        "disagreement": lambda: (torch.special.entr(p_sum / n).sum(1) - h_sum / n).clamp_min(0),
        "vote_entropy": lambda: torch.special.entr(shares).sum(1),
        "variation": lambda: 1 - shares.amax(1),
    }
    return [of() for name, of in found.items() if name in names]


def logits_of_each(logits: Tensor, members: Sequence[Network], given: Given, maps: Maps, up: Upsampling,
                   backend: Backend) -> Iterator[Tensor]:
    """Of the network that looks, which are known, then of each of the others, one at a time.

    A frozen backbone's maps are the same for all: they are made once.
    """
    yield logits
    for member in members:
        with backend.autocast():
            yield member.logits(*(maps if member.freeze_backbone else maps_of(member, given)), up)
