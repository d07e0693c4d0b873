"""Training: what is in a batch, what is kept, what stops it, and that it learns."""

import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import CPU, noise, tiny_backend, tiny_features, tiny_model

from meal_gpu.config import TrainConfig
from meal_gpu.data.frames import HeldFrames
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.network.dropout import Dropout
from meal_gpu.stages.evaluate import evaluate
from meal_gpu.stages.train import _batches, cross_entropy, train

BACKEND = tiny_backend()


@dataclass
class Measured:
    miou: float | None


def order(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class Toy:
    """Six noise images of 32 x 48 pixels in a 2 x 2 grid with noise labels, and a network that sees them."""

    def __init__(self, context: str = "image", classes: int = 3, **model: object) -> None:
        self.images, self.grid = noise(6, 32, 48, seed=1), Grid(2, 2, 32, 48)
        self.model = tiny_model(classes, **model)
        self.features = tiny_features(self.model, self.images, (2, 2), context, cached=self.model.freeze_backbone)
        self.ids = torch.tensor([3, 0, 17, 9, 22, 14])
        self.labels = torch.randint(0, classes, (6, 16, 24), generator=order(5), dtype=torch.uint8)

    def train(self, epochs: int = 1, seed: int = 0, evaluate=lambda: None, **config):
        torch.manual_seed(seed)  # dropout
        settings = TrainConfig(**{"batch_size": 4, **config})
        return train(self.model, self.features, self.ids, self.labels, settings, epochs, BACKEND, order(seed), evaluate)


# --- batches ----------------------------------------------------------------------------------------------------------


@given(st.integers(2, 40), st.integers(2, 16), st.integers(0, 99))
def test_patches_come_in_random_order_and_full_batches(n, batch_size, seed):
    """The last batch is dropped when it is not full, except when there are fewer patches than a batch."""
    ids = torch.randperm(1000, generator=order(n))[:n]
    batches = list(_batches(ids, 16, TrainConfig(batch_size=batch_size), order(seed)))
    size = min(batch_size, n)
    assert [len(batch) for batch in batches] == [size] * (n // size)
    assert torch.equal(torch.cat(batches), torch.randperm(n, generator=order(seed))[: n // size * size])


@given(st.lists(st.integers(0, 47), min_size=2, max_size=40, unique=True), st.integers(2, 5), st.integers(0, 99))
def test_samples_of_images_hold_all_their_patches(ids, batch_size, seed):
    """12 images of 4 patches: a batch is so many images, each with every labelled patch that it has."""
    positions = {i: [p for p, patch in enumerate(ids) if patch // 4 == i] for i in {patch // 4 for patch in ids}}
    batches = list(_batches(torch.tensor(ids), 4, TrainConfig(batch_size=batch_size, sample="image"), order(seed)))
    size, seen = min(batch_size, len(positions)), []
    assert len(batches) == len(positions) // size
    for batch in batches:
        images = {ids[p] // 4 for p in batch.tolist()}
        assert len(images) == size
        assert sorted(batch.tolist()) == sorted(p for i in images for p in positions[i])
        seen += images
    assert len(seen) == len(set(seen))


def test_every_epoch_has_an_order_of_its_own_and_every_seed_too():
    ids, config, draw = torch.arange(30), TrainConfig(batch_size=30), order(1)
    first, second = (next(iter(_batches(ids, 4, config, draw))) for _ in range(2))
    other = next(iter(_batches(ids, 4, config, order(2))))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(first, next(iter(_batches(ids, 4, config, order(1)))))


def test_a_frame_of_several_patches_goes_through_the_backbone_once():
    toy = Toy(freeze_backbone=False)
    toy.ids, seen = torch.tensor([0, 1, 2, 5, 6, 3]), []
    toy.model.backbone.register_forward_hook(lambda module, inputs, outputs: seen.append(len(inputs[0])))
    toy.train(batch_size=6)
    assert seen == [2]


# --- the loss ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.sampled_from([0.0, 0.4, 0.99]))
def test_the_loss_is_the_mean_over_labelled_pixels(seed, void):
    draw = order(seed)
    logits = torch.randn(2, 5, 7, 4, generator=draw) * 5
    labels = torch.randint(0, 4, (2, 5, 7), generator=draw, dtype=torch.uint8)
    labels[torch.rand(2, 5, 7, generator=draw) < void] = 255
    log_p = logits.double().log_softmax(-1)
    picked = [-log_p[b, y, x, int(labels[b, y, x])] for b, y, x in (labels != 255).nonzero().tolist()]
    expected = torch.stack(picked).mean() if picked else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(logits, labels).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context", ["patch", "image"])
def test_pixels_meet_their_labels(context):
    """The loss of the first step, by the network's plain forward, where the frame is one patch and dropout is off."""
    images = noise(4, 30, 44)
    model = tiny_model(3)
    for module in model.modules():
        if isinstance(module, Dropout):
            module.dropped = 0
    labels = torch.randint(0, 3, (4, 30, 44), generator=order(3), dtype=torch.uint8)
    labels[0, :5] = 255
    ids = torch.tensor([2, 0, 3, 1])
    model.train()
    before = state(model)
    with torch.no_grad():
        expected = F.cross_entropy(model(images[ids]), labels.long(), ignore_index=255)
        model.load_state_dict(before)
        wrong = F.cross_entropy(model(images), labels.long(), ignore_index=255)
        model.load_state_dict(before)
    history = train(model, tiny_features(model, images, (1, 1), context), ids, labels, TrainConfig(), 1, BACKEND,
                    order(), lambda: None)
    assert history.epochs[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert history.epochs[0]["loss"] != pytest.approx(float(wrong), rel=1e-4)


def test_void_teaches_nothing():
    """A batch of void only has loss 0 and gradient 0: no parameter moves, and none becomes NaN."""
    toy = Toy()
    toy.labels[:] = 255
    before = {name: p.clone() for name, p in toy.model.named_parameters()}
    history = toy.train(2)
    assert [entry["loss"] for entry in history.epochs] == [0.0, 0.0]
    assert equal(before, dict(toy.model.named_parameters()))


def test_a_batch_of_void_among_others_ruins_nothing():
    toy = Toy()
    toy.labels[:4] = 255
    toy.train(3, batch_size=2)
    assert all(value.isfinite().all() for value in toy.model.state_dict().values())


# --- epochs -----------------------------------------------------------------------------------------------------------


def scripted(toy: Toy, mious: list[float | None]):
    """An evaluation that answers as told and remembers the weights it was asked about."""
    answers, states = iter(mious), []

    def evaluate() -> Measured:
        states.append(state(toy.model))
        return Measured(next(answers))

    return evaluate, states


@pytest.mark.parametrize(("mious", "best"), [
    ([0.1, 0.5, 0.3, 0.4], 2),
    ([0.1, 0.5, 0.5, 0.4], 2),  # the earlier of equals
    ([0.1, 0.2, 0.3, 0.4], 4),
    ([0.4, 0.3, 0.2, 0.1], 1),
    ([None, 0.0, None, None], 2),  # None: nothing but void to validate on
    ([None, None, None, None], 4),
])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "finetuned"])
def test_the_weights_of_the_best_epoch_are_kept_and_the_last_is_recorded(mious, best, frozen):
    toy = Toy(freeze_backbone=frozen)
    evaluate, states = scripted(toy, mious)
    history = toy.train(4, evaluate=evaluate)
    assert (history.best_epoch, history.best.miou, history.last.miou) == (best, mious[best - 1], mious[-1])
    assert [(entry["epoch"], entry["miou"]) for entry in history.epochs] == list(enumerate(mious, start=1))
    assert equal(states[best - 1], toy.model.state_dict())
    assert not any(equal(a, b) for i, a in enumerate(states) for b in states[:i])


def test_without_validation_the_last_epoch_is_kept():
    toy = Toy()
    history = toy.train(3)
    assert (history.best_epoch, history.best, history.last) == (3, None, None)
    again = Toy()
    again.train(2)
    assert not equal(toy.model.state_dict(), again.model.state_dict())


@pytest.mark.parametrize(("every", "epochs", "expected"), [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (2, 4, [2, 4]),
                                                           (9, 3, [3])])
def test_evaluation_every_so_many_epochs_and_after_the_last(every, epochs, expected):
    toy, seen = Toy(), []
    evaluate, states = scripted(toy, [0.5] * 9)
    torch.manual_seed(0)
    history = train(toy.model, toy.features, toy.ids, toy.labels, TrainConfig(batch_size=4, eval_every=every), epochs,
                    BACKEND, order(), evaluate, lambda *args: seen.append(args))
    assert [entry["epoch"] for entry in history.epochs] == expected
    assert len(states) == len(expected)
    assert seen == [("train", epoch, epochs) for epoch in range(1, epochs + 1)]


def test_evaluating_more_often_changes_no_weight():
    """Resumed, or looked at more closely, a training is the same training."""
    found = []
    for every in (1, 3):
        toy = Toy()
        toy.train(3, eval_every=every, evaluate=lambda toy=toy: (toy.model.eval(), None)[1])
        found.append(state(toy.model))
    assert equal(*found)


def steps(config: dict, epochs: int) -> list[float]:
    """How far the furthest weight moved in each epoch of one step; Adam's steps are about as long as its rate."""
    toy = Toy()
    states = [{name: p.detach().clone() for name, p in toy.model.named_parameters()}]

    def evaluate() -> None:
        states.append({name: p.detach().clone() for name, p in toy.model.named_parameters()})

    toy.train(epochs, evaluate=evaluate, batch_size=6, lr=1e-3, **config)
    return [max(float((b[name] - a[name]).abs().max()) for name in a)
            for a, b in itertools.pairwise(states)]


def test_the_learning_rate_is_constant_or_decays_as_configured():
    for step in steps({}, 4):
        assert 0.5e-3 < step < 2e-3
    decayed = steps({"lr_decay": 0.01, "lr_decay_every": 2}, 5)
    for step, rate in zip(decayed, [1e-3, 1e-3, 1e-5, 1e-5, 1e-7], strict=True):
        assert 0.3 * rate < step < 2 * rate


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_training_that_diverges_says_so():
    with pytest.raises(InputError, match=r"training loss is (nan|inf) in epoch \d: training diverged with train.lr 1e"
                                         r"\+30. Lower it, or use model.precision: float32"):
        Toy().train(4, lr=1e30)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_patches_are_refused(n):
    toy = Toy()
    toy.ids, toy.labels = toy.ids[:n], toy.labels[:n]
    with pytest.raises(InputError, match=f"{n} patch is labelled and batch-norm needs at least 2"):
        toy.train()


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_any_number_from_two_on_can_be_trained_on(context, n):
    """Fewer than a batch, one more than a batch: no step has a single patch."""
    toy = Toy(context)
    toy.ids, toy.labels = toy.ids[:n], toy.labels[:n]
    history = toy.train(2, batch_size=4)
    assert all(entry["loss"] > 0 for entry in history.epochs)


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"context": "patch"}, {"freeze_backbone": False}], ids=str)
def test_a_seed_gives_the_same_weights_bit_by_bit(changes):
    found = []
    for seed in (7, 7, 8):
        toy = Toy(**changes)
        toy.train(2, seed=seed)
        found.append(state(toy.model))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_a_frozen_backbone_is_not_touched():
    toy = Toy()
    before = state(toy.model)
    toy.train(2)
    after = toy.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("backbone."))
    moved = [name for name, _ in toy.model.named_parameters() if not torch.equal(after[name], before[name])]
    assert {name.split(".")[0] for name in moved} == {"aspp", "decoder"}


@pytest.mark.parametrize("context", ["image", "patch"])
def test_learns_to_tell_dark_from_bright(context):
    """Squares of 16 pixels are bright or dark at random; 16 patches to learn from, other images to validate."""
    grid = Grid(2, 2, 64, 64)

    def scenes(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = order(seed)
        sides = torch.randint(0, 2, (4, 4, 4), generator=draw).repeat_interleave(16, 1).repeat_interleave(16, 2)
        images = (sides[..., None] * 150 + torch.randint(0, 90, (4, 64, 64, 3), generator=draw)).to(torch.uint8)
        return images, sides.to(torch.uint8)

    images, masks = scenes(0)
    val_images, val_masks = scenes(1)
    model = tiny_model(2)
    ids = torch.randperm(16, generator=order(9))
    boxes = [(patch // 4, *grid.box(patch % 4)) for patch in ids.tolist()]
    labels = torch.stack([masks[image, y0:y1, x0:x1] for image, y0, x0, y1, x1 in boxes])
    val_features = tiny_features(model, val_images, (2, 2), context, cached=True)
    val_frames = HeldFrames.of(val_masks, grid, context, CPU)
    torch.manual_seed(0)
    history = train(model, tiny_features(model, images, (2, 2), context, cached=True), ids, labels,
                    TrainConfig(batch_size=8, eval_every=5), 5, BACKEND, order(),
                    lambda: evaluate(model, val_features, val_frames, 2, BACKEND))
    assert history.best.miou > 0.8
    assert history.epochs[-1]["loss"] < 0.5 * 0.69  # of what knowing nothing costs
