"""Strategies that take patches by a score, and random ones."""

import torch
from torch import Tensor

from ..stages.ranking import top
from .costs import NEEDS, expected_clicks
from .noise import with_noise
from .view import PoolView, Strategy

BY_CLASSES = 0.66
"""Part of ClaSP's query that is shared out among classes."""
SILENT = 1e-3
"""Nats: a class that nowhere has so much of the entropy is not predicted at all, and its share goes by the whole."""


def random_spread(view: PoolView, n: int) -> Tensor:
    """Free patches at random, one of every image before a second of any."""
    ids = view.free_ids[torch.argsort(view.uniforms(view.n_free), stable=True)]
    return ids[torch.argsort(turn(view.image[ids]), stable=True)[:n]]


def ripu(view: PoolView, n: int) -> Tensor:
    """RIPU (Xie et al., 2022): impurity of the predicted classes around a pixel, times the uncertainty there, in the
    windows of 3 × 3 cells that it was made for; averaged over the patch."""
    return view.ranked(view.whole("ripu"), n)


def ripu_patch(view: PoolView, n: int) -> Tensor:
    """`ripu` with the patch as the region: how many classes it is predicted to hold, times its mean entropy."""
    shares = view.whole("histogram")
    return view.ranked(torch.special.entr(shares).sum(1) * view.whole("entropy"), n)


def bald(view: PoolView, n: int) -> Tensor:
    """BALD (Houlsby et al., 2011; Gal et al., 2017): what samples of the network with dropped units disagree about."""
    return view.ranked(view.whole("bald"), n)


def ensemble(view: PoolView, n: int) -> Tensor:
    """What networks disagree about that were trained on the same labels from other seeds, by mutual information
    (Lakshminarayanan et al., 2017; Beluch et al., 2018)."""
    return view.ranked(view.whole("disagreement"), n)


def ensemble_votes(view: PoolView, n: int) -> Tensor:
    """Query by committee (Dagan & Engelson, 1995): the entropy of these networks' votes."""
    return view.ranked(view.whole("vote_entropy"), n)


def ensemble_variation(view: PoolView, n: int) -> Tensor:
    """Variation ratio (Beluch et al., 2018): the share of these networks that vote against the most."""
    return view.ranked(view.whole("variation"), n)


def equal(view: PoolView, n: int) -> Tensor:
    """EquAL (Golestaneh & Kitani, 2020): uncertainty, and that in a mirror. It holds no disagreement of the two."""
    assert view.score is not None
    return view.ranked(view.whole("mirrored"), n, view.score)


def flip_js(view: PoolView, n: int) -> Tensor:
    """What the network says of an image and of its mirror image, by Jensen-Shannon divergence: the disagreement that
    `equal` has not."""
    return view.ranked(view.whole("flip_js"), n)


def cereals(view: PoolView, n: int) -> Tensor:
    """CEREALS (Mackowiak et al., 2018): uncertainty per expected click."""
    assert view.score is not None
    return top(view.score / expected_clicks(view), view.free, view.n_free, n)


def clasp(view: PoolView, n: int) -> Tensor:
    """ClaSP PE (nnActive): two thirds of the query evenly over classes by their part of the entropy, the rest by all
    of it, drawn ever closer to the top from the first round (power 1) to the last (100)."""
    parts, whole = view.whole("class_entropy"), view.whole("entropy")
    classes, share = parts.shape[1], round(BY_CLASSES * n)
    power = 100 ** (view.round / max(view.rounds - 1, 1))
    free, left = view.free, view.n_free
    picked: list[Tensor] = []
    for c in [*((view.round + c) % classes for c in range(classes)), classes]:  # who gets one more takes turns
        wanted = share // classes + (len(picked) < share % classes) if c < classes else n - share
        score = torch.where(parts[:, c].amax() < SILENT, whole, parts[:, c]) if c < classes else whole
        picked.append(top(with_noise(score, power, view), free, left, wanted))
        free, left = free.index_fill(0, picked[-1], False), left - wanted
    return torch.cat(picked)


def most_uncertain(view: PoolView, n: int) -> Tensor:
    return view.most_uncertain(n)


def turn(groups: Tensor) -> Tensor:
    """How many of its group stand before each, int64 ``[m]``."""
    by_group = torch.argsort(groups, stable=True)
    sorted_ = groups[by_group]
    first = torch.searchsorted(sorted_, sorted_)
    return torch.empty_like(groups).index_copy_(0, by_group, torch.arange(len(groups), device=groups.device) - first)


SCORES: dict[str, Strategy] = {
    "random_spread": Strategy(random_spread),
    "entropy_calibrated": Strategy(most_uncertain, frozenset({"score", "temperature"})),
    "ripu": Strategy(ripu, frozenset({"ripu"}), ranks=True),
    "ripu_patch": Strategy(ripu_patch, frozenset({"histogram", "entropy"}), ranks=True),
    "bald": Strategy(bald, frozenset({"bald"}), ranks=True),
    "ensemble": Strategy(ensemble, frozenset({"disagreement"}), ranks=True),
    "ensemble_votes": Strategy(ensemble_votes, frozenset({"vote_entropy"}), ranks=True),
    "ensemble_variation": Strategy(ensemble_variation, frozenset({"variation"}), ranks=True),
    "equal": Strategy(equal, frozenset({"score", "mirrored"}), ranks=True),
    "flip_js": Strategy(flip_js, frozenset({"flip_js"}), ranks=True),
    "cereals": Strategy(cereals, frozenset({"score"}) | NEEDS),
    "clasp": Strategy(clasp, frozenset({"class_entropy", "entropy"})),
}
