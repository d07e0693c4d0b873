"""The order of patches: higher score first, ties to the lower id. One rule for a whole pool and for its parts."""

import torch
from torch import Tensor


def rank_keys(score: Tensor, ids: Tensor | None = None) -> Tensor:
    """A key per score, float32 ``[n]`` → int64 ``[n]``: greater for a higher score, and for the lower id of equal ones.

    All keys differ. `torch.topk`, which promises nothing about ties, is exact on them, and nothing need be sorted.
    ``ids`` int64 ``[n]``, below 2^32, are those of the scores; without them 0, 1, 2, …
    """
    bits = (score + 0.0).view(torch.int32)  # -0.0 becomes 0.0, which it equals
    # Ordered as the numbers are: the bits of a float say sign and magnitude.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) - (torch.arange(len(score), device=score.device) if ids is None else ids)


def top(score: Tensor, free: Tensor, n_free: int, n: int) -> Tensor:
    """The n patches of highest ``score`` float32 ``[n_patches]`` among the ``n_free`` that are ``free``; all if fewer.

    int64, highest first. Nothing waits for the device.
    """
    keys = torch.where(free, rank_keys(score), torch.iinfo(torch.int64).min)
    return keys.topk(min(n, n_free)).indices


def merge(ids: Tensor, scores: Tensor, n: int) -> Tensor:
    """The n first of candidates from several parts, as indices into them.

    ``ids`` int64 ``[m]`` and ``scores`` float32 ``[m]`` in any order. Where each part gives its own n first (or all it
    has), the result is `top` of the whole: a patch that its part left out has n before it already.
    """
    return rank_keys(scores, ids).topk(min(n, len(ids))).indices
