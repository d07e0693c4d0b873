"""The recipe: how long, which steps at which rates, and the mean of weights; each part alone."""

import math

import pytest
import torch
from test_train import Toy, scripted, state
from tiny import stir_norms, tiny_config, tiny_model

from meal_gpu.config import Config, TrainConfig
from meal_gpu.errors import InputError
from meal_gpu.launch import run
from meal_gpu.records import read_rounds
from meal_gpu.report import load_run
from meal_gpu.report.paper import _departures
from meal_gpu.report.words import setting
from meal_gpu.stages.recipe import MovingMean, optimiser_of, schedule_of, trained_state


def rates(steps: int, per_epoch: int = 3, **config) -> list[float]:
    """The rate of each step."""
    settings = TrainConfig(lr=0.5, **config)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], settings.lr)
    schedule, found = schedule_of(optimiser, settings, math.ceil(steps / per_epoch), per_epoch), []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_rates():
    assert rates(12) == [0.5] * 12
    assert rates(12, lr_decay=0.5, lr_decay_every=2) == [0.5] * 6 + [0.25] * 6  # epochs of three steps
    n = 12
    assert rates(n, schedule="cosine") == pytest.approx([0.25 * (1 + math.cos(math.pi * i / n)) for i in range(n)])
    assert rates(n, schedule="poly") == pytest.approx([0.5 * (1 - i / n) ** 0.9 for i in range(n)])


def test_optimisers():
    model = tiny_model(3)
    trained = sum(p.requires_grad for p in model.parameters())
    for name, kind, decay in (("adam", torch.optim.Adam, 0), ("adamw", torch.optim.AdamW, 0.1)):
        optimiser = optimiser_of(model, TrainConfig(optimizer=name, weight_decay=decay))
        assert type(optimiser) is kind
        assert [(group["weight_decay"], len(group["params"])) for group in optimiser.param_groups] == [(decay, trained)]


def test_weights_decay_apart_from_gradients():
    """Void has no gradient: Adam moves nothing, AdamW shrinks every weight by lr x decay a step."""
    toy = Toy()
    toy.labels[:] = 255
    before = {name: p.clone() for name, p in toy.model.named_parameters() if p.requires_grad}
    toy.train(2, optimizer="adamw", weight_decay=0.5, lr=0.1)
    for name, p in toy.model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p, before[name] * (1 - 0.1 * 0.5) ** 2)


# --- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "epochs", "expected"), [(0, 3, 3), (3, 3, 3), (4, 3, 4), (7, 3, 7), (7, 9, 9)])
def test_epochs_are_added_until_there_are_so_many_steps(least, epochs, expected):
    """Six patches in batches of four: an epoch is one step."""
    toy = Toy()
    evaluate, _ = scripted(toy, [0.5] * 9)
    history = toy.train(epochs, evaluate=evaluate, min_steps=least)
    assert [entry["epoch"] for entry in history.epochs] == list(range(1, expected + 1))


def test_steps_of_images_are_counted_as_images():
    """Ids 3 and 0 lie in one image of the five: two batches of two images an epoch."""
    toy = Toy()
    evaluate, _ = scripted(toy, [0.5] * 9)
    history = toy.train(1, evaluate=evaluate, batch_size=2, sample="image", min_steps=5)
    assert len(history.epochs) == 3


# --- the mean ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "finetuned"])
def test_the_mean_is_that_of_a_plain_loop(frozen):
    """Against float64; of all that training changes, statistics of the norms among it, and of nothing else."""
    model = tiny_model(3, freeze_backbone=frozen)
    start = {name: value.double() for name, value in trained_state(model).items()}
    assert any(name.startswith("backbone.") for name in start) is not frozen
    mean, expected = MovingMean(model, 0.9), dict(start)
    for step in range(1, 120):
        stir_norms(model, step)
        mean.follow()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * value.double()
                    for name, value in trained_state(model).items()}
    own = state(model)
    with mean.in_place():
        for name, value in trained_state(model).items():
            if value.is_floating_point():
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_its_own_weights_come_back_after_an_error():
    model = tiny_model(3)
    mean = MovingMean(model, 0.9)
    stir_norms(model, 1)
    mean.follow()
    own = state(model)
    with pytest.raises(KeyboardInterrupt), mean.in_place():
        raise KeyboardInterrupt
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_the_mean_is_evaluated_and_kept_and_training_goes_on_from_the_weights():
    """The weights that are trained are the same with and without a mean; what is seen of them is not."""
    toy, other = Toy(), Toy()
    seen, plain = scripted(toy, [0.1, 0.9, 0.2]), scripted(other, [0.1, 0.9, 0.2])
    means: list[dict[str, torch.Tensor]] = []

    def evaluate():
        means.append(state(toy.model))
        return seen[0]()

    toy.train(3, evaluate=evaluate, ema=0.5)
    other.train(3, evaluate=plain[0])
    assert all(torch.equal(value, means[1][name]) for name, value in toy.model.state_dict().items())
    began, decay = state(Toy().model), 2 / 11
    for name, parameter in toy.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(means[0][name], decay * began[name] + (1 - decay) * plain[1][0][name])


# --- runs -------------------------------------------------------------------------------------------------------------


RECIPE = {"train.schedule": "cosine", "train.optimizer": "adamw", "train.weight_decay": 0.01, "train.min_steps": 12,
          "train.ema": 0.9}


def test_a_run_with_all_of_it_repeats_itself_and_says_so(tmp_path):
    config = tiny_config(tmp_path, **{"query.strategy": "random", "query.rounds": 1, "seeds": [0], **RECIPE})
    runs = [run(config, tmp_path / name) for name in ("one", "two")]
    one, two = ([{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes", "check")}
                 for record in read_rounds(directory / "seed-0")] for directory in runs)
    assert one == two
    assert max(entry["epoch"] for entry in one[0]["history"]) == 4  # epochs of three steps, where the config says 2
    text = setting(load_run(runs[0]))
    assert ("with at least 12 steps, AdamW (weight decay 0.01), a cosine schedule and a moving mean of the weights "
            "(0.9)") in text
    assert {"train.schedule cosine (paper: step)", "train.optimizer adamw (paper: adam)",
            "train.min_steps 12 (paper: 0)", "train.ema 0.9 (paper: 0.0)"} <= set(_departures(config))


def test_without_it_nothing_is_said(tmp_path):
    config = Config.load("camvid")
    assert not any("train.schedule" in line or "ema" in line for line in _departures(config))


@pytest.mark.parametrize(("train", "message"), [
    ({"weight_decay": 0.1}, "train.optimizer is 'adam', which decays no weights. Use train.optimizer: adamw"),
    ({"schedule": "poly", "lr_decay": 0.1, "lr_decay_every": 2}, "that schedule has no steps. Use train.schedule"),
    ({"schedule": "linear"}, "train.schedule is 'linear'"), ({"ema": 1.0}, "train.ema is 1.0"),
    ({"min_steps": -1}, "train.min_steps is -1"),
])
def test_what_does_not_go_together_is_refused(train, message):
    with pytest.raises(InputError) as caught:
        Config.load({"train": train})
    assert message in str(caught.value)
