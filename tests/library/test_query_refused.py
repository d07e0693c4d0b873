"""Networks and arguments that `meal_gpu.query` cannot use: one sentence each, and what was given stays as it was."""

import pytest
import torch
import torch.nn.functional as F
from networks import GRID, inputs, small
from tiny import noise, tiny_model
from torch import nn

from meal_gpu.errors import InputError
from meal_gpu.library.query import query


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.head(F.relu_(x))


def counting(change):
    calls = []

    def network(x):
        calls.append(x)
        return change(torch.rand(len(x), 4, 8, 12), len(calls))

    return network


def with_nan(x):
    logits = torch.rand(len(x), 4, 8, 12)
    logits[1, 0, 0, 0] = float("nan")
    return logits


@pytest.mark.parametrize(("network", "said"), [
    (3, r"network is a int: give a torch\.nn\.Module or a function"),
    (lambda x: torch.rand(len(x), 1, 8, 12), r"gives 1 channel, as for a sigmoid: give two, for example by"),
    (lambda x: torch.rand(len(x), 300, 8, 12), r"gives 300 channels: 2 to 256 classes"),
    (lambda x: torch.rand(len(x), 4), r"gives float32 \[2, 4\] for 2 images"),
    (lambda x: torch.rand(1, 4, 8, 12), r"gives float32 \[1, 4, 8, 12\] for 2 images"),
    (lambda x: torch.zeros(len(x), 4, 8, 12, dtype=torch.int64), r"gives int64 .*: logits are floating-point"),
    (lambda x: {"scores": x}, r"gives a dict with 'scores': give logits"),
    (lambda x: None, r"gives nothing: give logits"),
    (counting(lambda logits, k: logits if k == 1 else logits[:, :3]), r"gives 3 channels, and 4 before"),
    (with_nan, r"output for image 1 \(number 1\) is not finite"),
    (InPlace(), r"changes its input in place"),
    (nn.Conv2d(4, 4, 1), r"failed on a batch \[2, 3, 64, 96\] of torch\.float32 on cpu: RuntimeError: .*channels"),
    (lambda x: torch.rand(len(x), 4, 8, 12, device="meta"), r"inputs are on cpu and its outputs on meta"),
])
def test_bad_networks_are_told_in_one_sentence(network, said):
    images = inputs(n=4)
    before = images.clone()
    with pytest.raises(InputError, match=said):
        query(network, images, GRID, 2, strategy="entropy", batch_size=2, progress=False)
    assert torch.equal(images, before)


def test_a_function_around_a_module_in_training_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)).train()
    with pytest.raises(InputError, match=r"a batch-norm in training mode, which fails on a batch of one: give the mod"):
        query(lambda x: network(x).expand(-1, -1, 8, 12), inputs(n=3), GRID, 2, strategy="entropy", batch_size=2,
              progress=False)
    answer = query(network.eval(), inputs(n=3), (1, 1), 2, strategy="entropy", batch_size=2, progress=False)
    assert len(answer.ids) == 2


def test_parameters_on_two_devices():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, device="meta"))
    with pytest.raises(InputError, match="parameters are on cpu and meta"):
        query(network, inputs(), GRID, 2, strategy="entropy", progress=False)


@pytest.mark.parametrize(("asked", "said"), [
    ({"features": None}, r"say where they come from by features.*Layers of this network with maps: body\.0 \[8,"),
    ({"features": "bodi"}, r"features is 'bodi', which is no module of the network\. Did you mean 'body'\?"),
    ({"features": 2}, r"features is 2, the number of an output, and the network gives float32"),
    ({"features": lambda x: x.mean()}, r"The function given as features gives float32 \[\]"),
    ({"grid": 4}, r"grid is 4: give \(rows, columns\)"),
    ({"grid": (80, 2)}, r"A grid of 80 x 2 does not fit images of 64 x 96"),
    ({"n": 0}, r"query\.n_query is 0"),
    ({"n": 31}, r"n is 31, and 30 of the 30 patches are not labelled yet"),
    ({"labelled": [30]}, r"labelled holds 30, which is no patch"),
    ({"labelled": [("9", 0, 0)]}, r"labelled names image '9', which is not in the pool"),
    ({"labelled": torch.zeros(4, 6, dtype=torch.bool)}, r"labelled is bool \[4, 6\]: give \[5, 6\]"),
    ({"strategy": "meel"}, r"query\.strategy is 'meel'\. Did you mean 'meal'\?"),
    ({"score": "entropi"}, r"query\.score is 'entropi'"),
    ({"names": ["a"]}, r"1 names for 5 images"),
    ({"images": torch.zeros(5, 3, 64, 96, dtype=torch.uint8)}, r"give uint8 RGB as \[N, H, W, 3\]"),
    ({"images": torch.zeros(0, 3, 64, 96)}, r"there is none"),
    ({"images": iter([1])}, r"What only iterates has no numbers"),
    ({"images": [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)], "grid": (2, 2), "n": 2},
     r"Item 1 of images is torch\.float32 \[3, 8, 9\] and item 0"),
    ({"images": "no/such/place"}, r"The directory no/such/place does not exist"),
    ({"size": (32, 48)}, r"size is \[32, 48\] and the images have \[64, 96\]: only files are resized"),
])
def test_bad_arguments_are_told_in_one_sentence(asked, said):
    given = {"images": inputs(), "grid": GRID, "n": 2, "features": "body", "progress": False, **asked}
    with pytest.raises(InputError, match=said):
        query(small(), given.pop("images"), given.pop("grid"), given.pop("n"), **given)


@pytest.mark.parametrize("network", [small, lambda: tiny_model(4)])
@pytest.mark.parametrize("strategy", ["ensemble", "ensemble_votes", "ensemble_variation"])
def test_one_network_disagrees_with_nobody(network, strategy):
    with pytest.raises(InputError, match=rf"'{strategy}' asks what several networks disagree about, .* Use bald"):
        query(network(), noise(4, 64, 96), GRID, 2, strategy=strategy, progress=False)
