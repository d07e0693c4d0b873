"""What ``query`` puts around a strategy: by default nothing, and otherwise what it says, whatever the strategy."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from views import FREE, featured, pool, view

from meal_gpu.config import QueryConfig
from meal_gpu.engine.apart import choose_apart
from meal_gpu.errors import InputError
from meal_gpu.strategies.select import STRATEGIES
from meal_gpu.strategies.wrapped import asked_for, wrapped


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_nothing_is_wrapped_unless_it_is_asked_for(name):
    assert asked_for(QueryConfig(strategy=name)) is STRATEGIES[name]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", sorted(STRATEGIES))
@given(free=st.lists(st.integers(0, 23), min_size=4, max_size=24, unique=True), seed=st.integers(0, 99),
       power=st.sampled_from([0.0, 1.0, 100.0]), quota=st.sampled_from([0.0, 0.5, 1.0]),
       cost=st.sampled_from([0.0, 1.0]))
@settings(max_examples=12)
def test_whatever_is_around_it_ids_are_free_and_distinct_and_repeat(name, free, seed, power, quota, cost):
    strategy = STRATEGIES[name]
    if not ("score" in strategy.needs or strategy.ranks):
        power = cost = 0.0
    query = QueryConfig(strategy=name, power=power, class_quota=quota, per_cost=cost, n_query=4, n_informative=6)
    found = [wrapped(strategy, query).choose(dataclasses.replace(pool(free, seed), query=query), 4).tolist()
             for _ in range(2)]
    assert found[0] == found[1]
    assert len(set(found[0])) == 4
    assert set(found[0]) <= set(free)


def test_power_and_cost_need_scores():
    for key in ("power", "per_cost"):
        with pytest.raises(InputError, match=f"query.{key} is 1, and strategy 'coreset' looks at no scores"):
            asked_for(QueryConfig(strategy="coreset", **{key: 1}))


def test_a_quota_gives_every_class_its_share_the_strategy_choosing_within():
    """Class 3 is predicted nowhere; of the others each gets two of its own, by score, and two are left for the rest."""
    shares = torch.full((24, 4), 0.004)
    for i in range(24):
        shares[i, i % 3] = 0.9
    query = QueryConfig(strategy="entropy", class_quota=0.75, n_query=4, n_informative=4)
    one = dataclasses.replace(view(FREE, seed=2), probabilities=shares, query=query)
    strategy = asked_for(query)
    assert "probabilities" in strategy.needs
    found = strategy.choose(one, 8).tolist()
    free = set(FREE)
    for turn, c in enumerate(shares.mean(0).argsort(stable=True).tolist()[1:]):
        candidates = [i for i in sorted(free) if i % 3 == c][:4]
        best = sorted(candidates, key=lambda i: (-float(one.score[i]), i))[:2]
        assert found[2 * turn : 2 * turn + 2] == best
        free -= set(best)
    assert found[6:] == sorted(free, key=lambda i: (-float(one.score[i]), i))[:2]


def test_cost_divides_every_score_the_strategys_own_too():
    clicks = torch.linspace(1, 20, 24)
    fields = {"boundary": torch.zeros(24), "components": clicks}
    for name, field in (("entropy", "score"), ("bald", "bald"), ("ripu", "ripu")):
        one = dataclasses.replace(featured(view(list(range(24))), torch.ones(24, 2), **fields), clicks=None)
        value = one.score if field == "score" else one.of(field, None)
        from meal_gpu.strategies.costs import expected_clicks

        expected = (value / expected_clicks(one)).argsort(descending=True)[:5].tolist()
        assert asked_for(QueryConfig(strategy=name, per_cost=1)).choose(one, 5).tolist() == expected


@pytest.mark.parametrize("name", ["entropy", "meal", "coreset", "typiclust", "badge", "random"])
def test_no_more_than_so_many_of_one_image(name):
    one = pool(list(range(24)), n_informative=24)
    found = choose_apart(STRATEGIES[name], one, 9, None, one.labelled_ids, 0.0, per_image=2)
    counts = torch.bincount(one.image[found], minlength=6)
    assert len(found.unique()) == 9
    assert counts.max() <= 2


def test_with_too_few_images_the_rest_is_beyond_the_limit_and_that_is_said(caplog):
    one = view([0, 1, 2, 3, 8])
    found = choose_apart(STRATEGIES["entropy"], one, 4, None, one.labelled_ids, 0.0, per_image=1)
    assert len(found.unique()) == 4
    assert 8 in found
    assert "query.per_image: 2 of the 4 patches" in caplog.text
