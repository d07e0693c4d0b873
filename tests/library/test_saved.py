"""Queries of saved predictions: those of the network that they came from, and bad files told in one sentence."""

import numpy as np
import pytest
import torch
from networks import GRID, SIZE, inputs, small

from meal_gpu.errors import InputError
from meal_gpu.library.query import query

NAMES = ["a", "b", "c", "d", "e"]


def saved(tmp_path, form, network, images, outputs="logits", features=False):
    """One file per image in the given form, each made alone: UMAP tells even the rounding of another batch."""
    with torch.no_grad():
        made = torch.cat([network(image) for image in images.split(1)])
        maps = torch.cat([network.body(image) for image in images.split(1)])
    made = made.softmax(1) if outputs == "probabilities" else made
    for name, one, two in zip(NAMES, made, maps, strict=True):
        file = tmp_path / f"{name}.{form}"
        content = {outputs: one.numpy(), **({"features": two.numpy()} if features else {})}
        if form == "npy":
            np.save(file, one.numpy())
        elif form == "npz":
            np.savez(file, **content)
        else:
            torch.save({key: torch.from_numpy(value) for key, value in content.items()} if features else one, file)
    return tmp_path


@pytest.mark.parametrize("form", ["npy", "npz", "pt"])
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_the_query_is_that_of_the_network(tmp_path, form, outputs):
    network, images = small().eval(), inputs()
    given = network if outputs == "logits" else lambda x: network(x).softmax(1)
    asked = {"strategy": "entropy", "outputs": outputs, "progress": False, "maps": True}
    expected = query(given, images, GRID, 4, names=NAMES, batch_size=1, **asked)
    answer = query(saved(tmp_path, form, network, images, outputs), None, GRID, 4, size=SIZE, **asked)
    assert torch.allclose(answer.scores, expected.scores, rtol=1e-6)
    assert answer.ids.tolist() == expected.ids.tolist()
    assert [patch["image"] for patch in answer.patches] == [patch["image"] for patch in expected.patches]
    assert torch.allclose(answer.maps.entropy, expected.maps.entropy, atol=1e-5)


@pytest.mark.parametrize("form", ["npz", "pt"])
def test_features_beside_the_predictions_are_embedded(tmp_path, form):
    network, images = small().eval(), inputs()
    asked = {"strategy": "meal_ft", "n_informative": 12, "progress": False}
    expected = query(network, images, GRID, 4, features="body", batch_size=1, **asked)
    answer = query(saved(tmp_path, form, network, images, features=True), None, GRID, 4, size=SIZE, **asked)
    assert torch.allclose(answer.features, expected.features, rtol=1e-5, atol=1e-6)
    assert answer.ids.tolist() == expected.ids.tolist()


def test_half_precision_at_full_resolution_needs_no_size(tmp_path):
    for name in NAMES:
        logits = np.random.default_rng(ord(name)).normal(size=(3, *SIZE)).astype(np.float16)
        np.save(tmp_path / f"{name}.npy", logits)
    answer = query(tmp_path, None, GRID, 4, strategy="entropy", progress=False)
    assert answer.patches[0]["box"][2] <= SIZE[0]
    logits = torch.from_numpy(np.stack([np.load(tmp_path / f"{name}.npy") for name in NAMES])).double()
    entropy = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy()
    expected = entropy.view(5, 2, 32, 3, 32).mean((2, 4)).view(-1)
    assert torch.allclose(answer.scores.double(), expected, rtol=1e-5)


def test_names_of_images_decide_the_order_and_what_is_missing(tmp_path):
    network, images = small().eval(), inputs()
    saved(tmp_path, "npy", network, images)
    asked = {"strategy": "entropy", "size": SIZE, "progress": False}
    straight = query(tmp_path, None, GRID, 4, **asked)
    turned = query(tmp_path, None, GRID, 4, names=["seq/e", "d", "c", "b", "a"], **asked)
    assert torch.equal(turned.scores.view(5, 6).flip(0), straight.scores.view(5, 6))
    with pytest.raises(InputError, match=r"2 of 3 images have no predictions in .*: x, y; files there are called like"):
        query(tmp_path, None, GRID, 2, names=["a", "x", "y"], **asked)


def bad(tmp_path, kind):
    good = np.zeros((3, 8, 12), np.float32) + np.arange(3, dtype=np.float32)[:, None, None]
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", good)
    file = tmp_path / "b.npy"
    if kind == "text":
        file.write_text("no array")
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:200])
    elif kind == "pickle":
        np.save(file, np.array([{}], dtype=object))
    elif kind == "integers":
        np.save(file, good.astype(np.int32))
    elif kind == "flat":
        np.save(file, good[0])
    elif kind == "classes":
        np.save(file, good[:2])
    elif kind == "nan":
        np.save(file, good * np.nan)
    elif kind == "twice":
        np.savez(tmp_path / "b.npz", logits=good)
    elif kind == "keys":
        file.unlink()
        np.savez(tmp_path / "b.npz", probabilities=good)


@pytest.mark.parametrize(("kind", "said"), [
    ("text", r"b\.npy cannot be read"), ("truncated", r"b\.npy cannot be read"), ("pickle", r"b\.npy cannot be read"),
    ("integers", r"b\.npy holds int32: give float16"), ("flat", r"b\.npy gives float32 \[1, 8, 12\]"),
    ("classes", r"b\.npy gives 2 channels, and 3 before"), ("nan", r"output for image b \(number 1\) is not finite"),
    ("twice", r"are predictions of one image: remove one"),
    ("keys", r"b\.npz holds 'probabilities', and outputs is 'logits'"),
])
def test_bad_files_are_named(tmp_path, kind, said):
    bad(tmp_path, kind)
    with pytest.raises(InputError, match=said):
        query(tmp_path, None, GRID, 2, strategy="entropy", size=SIZE, progress=False)


def test_what_is_no_directory_of_predictions(tmp_path):
    with pytest.raises(InputError, match="holds no predictions: expected one file per image"):
        query(tmp_path, None, GRID, 2, progress=False)
    with pytest.raises(InputError, match="which is no directory of saved predictions"):
        query(tmp_path / "net.pth", None, GRID, 2, progress=False)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(3, 8, 12)))
    with pytest.raises(InputError, match="holds no 'features', maps"):
        query(tmp_path, None, GRID, 2, size=SIZE, strategy="meal", progress=False)
