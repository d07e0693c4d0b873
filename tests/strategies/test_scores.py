"""Strategies that take patches by a score, against what their formulas say in float64; costs in clicks; noise."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from views import FREE, featured, pool, view

from meal_gpu.strategies.costs import SPACING, clicks_of, expected_clicks
from meal_gpu.strategies.literature import LITERATURE
from meal_gpu.strategies.noise import with_noise


def ranked(score: np.ndarray, free: list[int], n: int) -> list[int]:
    return sorted(free, key=lambda i: (-score[i], i))[:n]


def double(one: object, name: str) -> np.ndarray:
    return one.of(name, None).double().numpy()


FIELDS = {"ripu": "ripu", "bald": "bald", "ensemble": "disagreement", "ensemble_votes": "vote_entropy",
          "ensemble_variation": "variation", "flip_js": "flip_js"}


@pytest.mark.parametrize("name", FIELDS)
def test_what_the_pass_says_is_taken_from_the_top_ties_to_the_lower_id(name):
    field = torch.randint(0, 4, (24,), generator=torch.Generator().manual_seed(3)).float()
    one = featured(pool(), torch.ones(24, 2), **{FIELDS[name]: field})
    assert LITERATURE[name].choose(one, 7).tolist() == ranked(field.numpy(), FREE, 7)


def test_ripu_of_a_patch_is_how_many_classes_it_holds_times_how_unsure_it_is():
    one = pool()
    h = double(one, "histogram")
    score = -(h * np.log(h)).sum(1) * double(one, "entropy")
    assert LITERATURE["ripu_patch"].choose(one, 8).tolist() == ranked(score, FREE, 8)


def test_equal_adds_what_the_mirror_says():
    one = pool()
    score = double(one, "score") + double(one, "mirrored")
    assert LITERATURE["equal"].choose(one, 8).tolist() == ranked(score, FREE, 8)


def test_clasp_serves_every_class_and_in_the_end_from_the_top():
    """In the last round hardly any noise is left: two thirds by class, the rest by all of the entropy."""
    draw = torch.Generator().manual_seed(0)
    parts = torch.rand(24, 4, generator=draw)
    parts = torch.where(torch.arange(24)[:, None] % 4 == torch.arange(4), 1 + 3 * parts, 0.01 * parts)
    parts[:, 2] = 0  # never predicted: its share goes by the whole
    whole = parts.sum(1)
    one = dataclasses.replace(featured(view(list(range(24))), torch.ones(24, 2), class_entropy=parts, entropy=whole),
                              round=8, rounds=9)
    found = LITERATURE["clasp"].choose(one, 12).tolist()
    assert len(set(found)) == 12
    order, left = [], set(range(24))
    for c in (0, 1, 2, 3, 4):
        score = (whole if c in (2, 4) else parts[:, c]).double().numpy()
        best = ranked(score, sorted(left), 2 if c < 4 else 4)
        order.append(best)
        left -= set(best)
    for c in (0, 1, 3):
        assert {i % 4 for i in found[2 * c : 2 * c + 2]} == {c}
    hits = sum(any(i in some for some in order) for i in found)
    assert hits >= 9
    early = [dataclasses.replace(one, round=0, uniforms=view([0], seed=seed).uniforms) for seed in range(5)]
    assert len({tuple(LITERATURE["clasp"].choose(other, 12).tolist()) for other in early}) > 1


# --- clicks -----------------------------------------------------------------------------------------------------------


def test_clicks_are_regions_and_boundaries_of_a_mask():
    masks = torch.randint(0, 3, (4, 6, 7), generator=torch.Generator().manual_seed(0)).repeat_interleave(
        4, 1).repeat_interleave(3, 2).to(torch.uint8)
    expected = []
    for mask in masks.numpy().astype(int):
        regions = sum(ndimage.label(mask == c)[1] for c in range(3))
        edges = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        expected.append(regions + edges / SPACING)
    assert clicks_of(masks).numpy() == pytest.approx(expected)


def test_expected_clicks_are_learned_from_labelled_patches():
    """Masks with three times the boundary that is predicted, and two clicks to open a patch."""
    draw = torch.Generator().manual_seed(0)
    edges, regions = 300 * torch.rand(24, generator=draw), torch.randint(1, 9, (24,), generator=draw).float()
    truth = 2 + regions + 3 * edges / SPACING
    free = list(range(12, 24))
    one = featured(view(free), torch.ones(24, 2), boundary=edges, components=regions)
    one = dataclasses.replace(one, clicks=lambda: truth[:12])
    torch.testing.assert_close(expected_clicks(one), truth.clamp_min(float(truth.quantile(0.1))), rtol=1e-4, atol=1e-4)
    score = one.score.double().numpy()
    found = LITERATURE["cereals"].choose(one, 5).tolist()
    assert found == ranked(score / expected_clicks(one).double().numpy(), free, 5)
    few = dataclasses.replace(one, clicks=None)  # nobody knows: the outlines as they are
    assert expected_clicks(few).max() == pytest.approx(float((regions + edges / SPACING).max()))


def test_what_costs_next_to_nothing_is_not_worth_everything():
    edges = torch.cat([torch.zeros(2), torch.full((22,), 200.0)])
    one = featured(view(list(range(24))), torch.ones(24, 2), boundary=edges, components=torch.zeros(24))
    assert expected_clicks(one).min() >= 1


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_draws_by_powers_of_scores():
    score, counts = torch.tensor([1.0, 2.0, 3.0, 0.0]), np.zeros(4)
    draw = torch.Generator().manual_seed(0)
    one = dataclasses.replace(view([0]), uniforms=lambda n: torch.rand(n, generator=draw, dtype=torch.float64))
    for _ in range(6000):
        counts[with_noise(score, 2.0, one).argmax()] += 1
    assert counts[3] == 0
    assert counts[:3] / 6000 == pytest.approx(np.array([1, 4, 9]) / 14, abs=0.02)


@given(st.floats(0.01, 1000), st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=24))
def test_noise_stays_finite(power, scores):
    made = with_noise(torch.tensor(scores), power, view([0]))
    assert made.isfinite().all()
    assert made.max() == 1
