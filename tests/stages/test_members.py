"""What the members of an ensemble disagree about, against each of them looked at alone, in float64."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, noise, stir_norms, tiny_backend, tiny_features, tiny_model

from meal_gpu.data.pixels import normalise
from meal_gpu.grid import Grid
from meal_gpu.stages.members import DISAGREEMENTS, disagreements, further
from meal_gpu.stages.predict import How, passes, predict

SIZE = (57, 83)


def ensemble(frozen: bool, n: int = 3, classes: int = 4) -> list:
    """Networks as a run has them: of a frozen backbone, which all share, or apart altogether."""
    found = [tiny_model(classes, seed=i, freeze_backbone=frozen) for i in range(n)]
    for i, one in enumerate(found):
        stir_norms(one, 0)
        if frozen:
            one.backbone.load_state_dict(found[0].backbone.state_dict())
        torch.nn.init.normal_(one.decoder.classify.weight, std=0.3, generator=torch.Generator().manual_seed(i))
        one.eval()
    return found


def plain(p: torch.Tensor) -> dict[str, torch.Tensor]:
    """Probabilities float64 ``[members, C, h, w]`` → the disagreements of each pixel, by what they are called."""
    def entropy(of: torch.Tensor, dim: int) -> torch.Tensor:
        return -(of * of.clamp_min(1e-300).log()).sum(dim)

    shares = torch.stack([(p.argmax(1) == c).double().mean(0) for c in range(p.shape[1])])
    return {"disagreement": entropy(p.mean(0), 0) - entropy(p, 1).mean(0), "vote_entropy": entropy(shares, 0),
            "variation": 1 - shares.max(0).values}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("fold", [False, True])
def test_a_frozen_backbones_maps_are_made_once(cached, fold):
    check(frozen=True, cached=cached, fold=fold)


@pytest.mark.parametrize("fold", [False, True])
def test_members_that_were_finetuned_see_with_backbones_of_their_own(fold):
    check(frozen=False, cached=False, fold=fold)


def check(frozen: bool, cached: bool, fold: bool) -> None:
    first, *others = ensemble(frozen)
    images, backend = noise(2, *SIZE), dataclasses.replace(tiny_backend(), fold_norms=fold)
    features = tiny_features(first, images, (3, 4), cached=cached)
    calls = []
    hooks = [one.backbone.register_forward_hook(lambda *_: calls.append(1)) for one in (first, *others)]
    found = predict(first, features, set(DISAGREEMENTS), "entropy", backend, members=others)
    if not fold:  # the folded copy is another module
        assert len(calls) == (0 if cached else 1 if frozen else 3)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        seen = torch.stack([one.logits(*one.features(normalise(images))).double().softmax(1)
                            for one in (first, *others)])
    for i in range(2):
        for name, pixels in plain(seen[:, i]).items():
            full = F.interpolate(pixels[None, None], SIZE, mode="bilinear", align_corners=True)[0, 0]
            expected = torch.stack([full[y0:y1, x0:x1].mean() for y0, x0, y1, x1 in Grid(3, 4, *SIZE).boxes()])
            torch.testing.assert_close(found.whole(name)[12 * i : 12 * i + 12].double(), expected, rtol=2e-3, atol=1e-4)
            assert float(expected.max()) > 0.05


def test_a_tie_of_votes_and_members_that_agree():
    one = torch.tensor([2.0, 1.0, 0.0, -1.0]).view(1, 4, 1, 1)
    two = torch.tensor([1.0, 2.0, 0.0, -1.0]).view(1, 4, 1, 1)
    names = tuple(DISAGREEMENTS)
    agreed = disagreements(names, [one, one, one])
    assert [float(value) for value in agreed] == pytest.approx([0.0, 0.0, 0.0], abs=2e-7)
    mi, votes, variation = (float(value) for value in disagreements(names, iter([one, two])))
    p = torch.stack([one, two]).double().softmax(2).flatten(1)
    assert mi == pytest.approx(float(torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()))
    assert votes == pytest.approx(0.693147)
    assert variation == 0.5
    assert [float(value) for value in disagreements(["variation"], [one, two])] == [0.5]  # what is asked for alone
    extreme = torch.tensor([1e4, -1e4, 0.0, 0.0]).view(1, 4, 1, 1)
    for value in disagreements(names, [extreme, -extreme]):
        assert value.isfinite().all()
        assert value > 0


def test_what_a_patch_is_told_does_not_depend_on_what_is_beside_it_nor_on_what_else_is_asked(one_thread):
    first, *others = ensemble(frozen=True)
    features = tiny_features(first, noise(3, *SIZE), (3, 4))
    backend = tiny_backend()
    alone = predict(first, features, {"disagreement"}, "entropy", backend, members=others).whole("disagreement")
    more = predict(first, features, {"disagreement", "score", "margin", "mirrored", "variation"}, "entropy", backend,
                   members=others)
    assert torch.equal(more.whole("disagreement"), alone)
    plain = predict(first, features, {"score", "margin"}, "entropy", backend)
    assert torch.equal(more.whole("score"), plain.whole("score"))  # the first network's
    assert torch.equal(more.whole("margin"), plain.whole("margin"))


def test_a_member_that_diverged_is_found():
    first, *others = ensemble(frozen=True)
    torch.nn.init.constant_(others[1].decoder.classify.bias, float("nan"))
    features = tiny_features(first, noise(2, *SIZE), (3, 4))
    assert predict(first, features, {"disagreement"}, "entropy", tiny_backend(), members=others).bad(CPU) == 0


def test_the_cost_is_said():
    others = ensemble(frozen=True)[1:]
    assert passes({"disagreement"}, How(), others) == {"pool": 1, "members": 2}
    assert passes({"score"}, How(), others) == {"pool": 1}
    assert further({"disagreement", "score"}, 5) == 4
    assert further({"score"}, 5) == 0
