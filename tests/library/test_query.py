"""`meal_gpu.query` with other people's networks, against a plain loop in float64; with ours, against the engine."""

import json
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from networks import FREE, GRID, SIZE, N, inputs, near, plain, small
from PIL import Image
from tiny import noise, tiny_config

import meal_gpu
from meal_gpu.data.pixels import normalise
from meal_gpu.engine.acquire import acquire
from meal_gpu.engine.experiment import prepare
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.library.query import query
from meal_gpu.stages.statistics import Tiles, measure
from meal_gpu.strategies.select import PoolView, Strategy
from meal_gpu.timing import StageClock


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("deep", [0, 2, 3], ids=["stride 1", "stride 4", "stride 8"])
@pytest.mark.parametrize("score", ["entropy", "least_confidence", "margin", "ratio"])
def test_scores_and_choice_are_those_of_a_plain_loop(deep, align, score):
    network, images = small(deep=deep).eval(), inputs()
    answer = query(network, images, GRID, 7, strategy="entropy", score=score, align_corners=align, batch_size=2,
                   progress=False)
    expected, _ = plain(network, images, SIZE, GRID, score, align)
    assert near(answer.scores, expected)
    assert answer.ids.tolist() == torch.argsort(expected, descending=True, stable=True)[:7].tolist()
    assert [patch["id"] for patch in answer.patches] == answer.ids.tolist()


def other_networks():
    import segmentation_models_pytorch as smp
    import transformers
    from torchvision.models import segmentation

    segformer = transformers.SegformerConfig(
        num_labels=5, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16)
    return {
        "smp Unet": (lambda: smp.Unet("resnet18", encoder_weights=None, classes=5), "decoder.blocks.4"),
        "torchvision deeplabv3": (lambda: segmentation.deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=5), "backbone"),
        "torchvision lraspp": (lambda: segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=5), "classifier.cbr"),
        "transformers SegFormer": (lambda: transformers.SegformerForSemanticSegmentation(segformer),
                                   "decode_head.linear_fuse"),
    }


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("name", ["smp Unet", "torchvision deeplabv3", "torchvision lraspp", "transformers SegFormer"])
@pytest.mark.usefixtures("off_the_path")
def test_networks_of_other_libraries(name, align):
    """As they come, with random weights: what they return is found, and so is the layer that is named."""
    pytest.importorskip("segmentation_models_pytorch")
    pytest.importorskip("transformers")
    make, layer = other_networks()[name]
    torch.manual_seed(1)
    network = make().train()
    with torch.no_grad():  # of logits all alike nothing could be told
        for parameter in list(network.parameters())[-2:]:
            parameter.mul_(20)
    images = inputs(n=3)
    answer = query(network, images, GRID, 4, strategy="meal_ft", features=layer, n_informative=8, batch_size=2,
                   align_corners=align, progress=False)
    assert network.training
    network.eval()
    caught = {}

    def maps(image):
        hook = network.get_submodule(layer).register_forward_hook(lambda *given: caught.update(out=given[2]))
        network(image)
        hook.remove()
        made = caught["out"]
        return made if isinstance(made, torch.Tensor) else made["out"]

    scores, vectors = plain(network, images, SIZE, GRID, align=align, maps=maps)
    assert near(answer.scores, scores)
    assert torch.allclose(answer.features.double(), vectors, rtol=1e-4, atol=1e-5)
    best = set(torch.argsort(scores, descending=True, stable=True)[:8].tolist())
    assert len(set(answer.ids.tolist())) == 4
    assert set(answer.ids.tolist()) <= best


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.usefixtures("off_the_path")
def test_a_segformer_at_every_stride(stride, align):
    """As its own are (4), pooled (8), and interpolated to the image by whoever uses it (1)."""
    pytest.importorskip("transformers")
    torch.manual_seed(1)
    network = other_networks()["transformers SegFormer"][0]().eval()
    with torch.no_grad():
        network.decode_head.classifier.weight.mul_(30)

    def strided(x):
        logits = network(x).logits
        return {1: F.interpolate(logits, SIZE, mode="bicubic"), 4: logits, 8: F.avg_pool2d(logits, 2)}[stride]

    answer = query(strided, inputs(n=3), GRID, 4, strategy="entropy", align_corners=align, progress=False)
    expected, _ = plain(strided, inputs(n=3), SIZE, GRID, align=align)
    assert near(answer.scores, expected)
    assert answer.ids.tolist() == torch.argsort(expected, descending=True, stable=True)[:4].tolist()


@pytest.mark.parametrize("strategy", ["random", "entropy", "meal", "meal_ft"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "finetuned"])
def test_with_our_network_it_gives_the_query_of_the_engine(tmp_path, strategy, frozen):
    config = tiny_config(tmp_path, **{"query.strategy": strategy, "model.freeze_backbone": frozen,
                                      "data.context": "image", "model.cache_features": "never"})
    experiment = prepare(config)
    pool = experiment.new_pool()
    ids = torch.tensor([1, 2, 9])
    pool.reveal(ids, torch.zeros(3, pool.grid.patch_height, pool.grid.patch_width, dtype=torch.uint8))
    model = experiment.new_model(3, 1)
    if not frozen:
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter.mul_(1.01)
    expected = acquire(experiment, pool, model, 3, 1, StageClock(torch.device("cpu")))
    manifold, grid = meal_gpu.Manifold(), (pool.grid.rows, pool.grid.cols)
    umap = config.umap.model_dump(exclude={"backend"})
    if not frozen:  # Φ is the pretrained network's
        first = query(experiment.pretrained, experiment.stores.train, grid, 1, strategy="meal", seed=3, umap=umap,
                      manifold=manifold, progress=False)
        assert first.manifold is manifold
    answer = query(model, experiment.stores.train.path, grid, config.query.n_query, labelled=ids, seed=3, round=1,
                   strategy=strategy, n_informative=config.query.n_informative, manifold=manifold, umap=umap,
                   progress=False)
    assert torch.equal(answer.ids, expected.ids)
    assert (answer.scores is None) == (strategy == "random")
    if expected.scores is not None:
        assert torch.equal(answer.scores[answer.ids], expected.scores)


def test_every_form_of_images_is_one_pool(tmp_path):
    """uint8, a store's array, files, and what is made of them: equal scores."""
    pixels, network = noise(4, *SIZE), small().eval()
    for i, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / f"img{i}.png")
    ready = normalise(pixels)

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return (ready[i], torch.zeros(2))

    dicts = [{"pixel_values": image, "labels": None} for image in ready]
    forms = [pixels, pixels.numpy(), tmp_path, str(tmp_path), ready, Pairs(), dicts]
    answers = [query(network, images, GRID, 3, strategy="entropy", progress=False) for images in forms]
    assert all(torch.equal(answers[0].scores, answer.scores) for answer in answers)
    assert answers[2].patches[0]["image"].startswith("img")


def test_files_of_other_sizes_are_resized_and_counted(tmp_path, caplog):
    for i, size in enumerate([(96, 64), (48, 32), (96, 64)]):
        Image.fromarray(noise(1, size[1], size[0], i)[0].numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    with caplog.at_level("INFO", "meal_gpu"):
        query(small(), tmp_path, GRID, 3, strategy="entropy", progress=False)
    assert "1 of 3 images were resized to 64 x 96 pixels" in caplog.text
    assert "1 ending in .txt" in caplog.text


@pytest.mark.parametrize("form", ["ids", "tensor", "bool", "array", "triples", "names", "answers"])
def test_what_is_labelled_is_not_asked_for(form):
    ids = [0, 7, 8, 29]
    patches = [(i // 6, i % 6 // 3, i % 3) for i in ids]
    mask = torch.zeros(N, 6, dtype=torch.bool)
    mask.view(-1)[ids] = True
    labelled = {"ids": ids, "tensor": torch.tensor(ids), "bool": mask, "array": mask.numpy(), "triples": patches,
                "names": [(f"n{i}", row, col) for i, row, col in patches],
                "answers": [{"image": f"n{i}", "row": row, "col": col} for i, row, col in patches]}[form]
    names = [f"n{i}" for i in range(N)]
    answer = query(small(), inputs(), GRID, FREE - 4, labelled=labelled, strategy="random", names=names,
                   progress=False)
    assert sorted(answer.ids.tolist()) == sorted(set(range(FREE)) - set(ids))


def test_the_network_is_left_as_it_was():
    network = small().train()
    network.body[0].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    query(network, inputs(), GRID, 3, strategy="meal_ft", features="body", progress=False)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_and_memory_format_are_the_networks(dtype):
    seen = []
    network = small().to(dtype).to(memory_format=torch.channels_last)
    network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    query(network, inputs(), GRID, 3, strategy="entropy", progress=False)
    assert {x.dtype for x in seen} == {dtype}
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_probabilities_are_taken_by_name_only():
    network = small()

    def soft(x):
        return network(x).softmax(1)

    network.eval()
    with pytest.raises(InputError, match=r"The network gives numbers .* add up to 1 .* these are probabilities\. Give"):
        query(soft, inputs(), GRID, 3, strategy="entropy", progress=False)
    with pytest.raises(InputError, match="outputs is 'probabilities', and those of the network add up to"):
        query(network, inputs(), GRID, 3, strategy="entropy", outputs="probabilities", progress=False)
    answer = query(soft, inputs(), GRID, 3, strategy="entropy", outputs="probabilities", progress=False)
    images, expected = inputs(), []
    for image in images:
        p = F.interpolate(soft(image[None]).double(), SIZE, mode="bilinear")[0]
        entropy = -(p * p.log()).sum(0)
        expected += [entropy[row * 32 : row * 32 + 32, col * 32 : col * 32 + 32].mean()
                     for row in range(2) for col in range(3)]
    assert near(answer.scores, torch.stack(expected).detach())


def test_the_manifold_is_fitted_once_and_places_what_has_moved():
    network, images = small(), inputs(n=12)
    asked = {"features": "body", "n_informative": 20, "progress": False}
    first = query(network, images, GRID, 4, **asked)
    points = first.manifold.points.clone()
    assert points.shape == (72, 2)
    again = query(network, images, GRID, 4, manifold=first.manifold, **asked)
    assert torch.equal(again.ids, first.ids)
    with torch.no_grad():
        network.body[0][0].weight.add_(0.05)
    moved = query(network, images, GRID, 4, labelled=first.patches, manifold=first.manifold, round=1, **asked)
    assert torch.equal(first.manifold.points, points)
    assert not set(moved.ids.tolist()) & set(first.ids.tolist())


def test_features_from_an_output_or_a_function():
    network = small().eval()

    def both(x):
        return network(x), network.body(x)

    named = query(network, inputs(), GRID, 3, strategy="meal_ft", features="body", progress=False)
    for asked, given in ((1, both), (network.body, network), (lambda x: network.body(x), network)):
        other = query(given, inputs(), GRID, 3, strategy="meal_ft", features=asked, progress=False)
        assert torch.equal(other.features, named.features)
        assert torch.equal(other.ids, named.ids)


def test_maps_of_the_chosen_patches():
    network, images = small().eval(), inputs()
    answer = query(network, images, GRID, 4, strategy="entropy", maps=True, progress=False)
    for i, patch in enumerate(answer.patches):
        y0, x0, y1, x1 = patch["box"]
        full = F.interpolate(network(images[int(patch["image"])][None]), SIZE, mode="bilinear")[0, :, y0:y1, x0:x1]
        assert torch.equal(answer.maps.prediction[i], full.argmax(0).to(torch.uint8))
        assert math.isclose(float(answer.maps.entropy[i].mean()), patch["score"], rel_tol=1e-4)


def test_a_strategy_of_ones_own_and_a_field_that_only_it_needs():
    def likeliest(view: PoolView, n: int) -> torch.Tensor:
        return torch.argsort(view.probabilities[:, 1].masked_fill(~view.free, -1), descending=True, stable=True)[:n]

    network = small().eval()
    answer = query(network, inputs(), GRID, 3, strategy=Strategy(likeliest, frozenset({"probabilities"})),
                   progress=False)
    means = []
    for image in inputs():
        p = F.interpolate(network(image[None]).softmax(1).double(), SIZE, mode="bilinear")[0, 1]
        means += [p[row * 32 : row * 32 + 32, col * 32 : col * 32 + 32].mean() for row in range(2) for col in range(3)]
    assert answer.ids.tolist() == torch.argsort(torch.stack(means), descending=True, stable=True)[:3].tolist()


def test_nothing_is_written_without_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    query(small(), inputs(), GRID, 3, strategy="entropy", progress=False)
    assert list(tmp_path.iterdir()) == []
    answer = query(small(), inputs(), GRID, 3, strategy="entropy", out=tmp_path / "a" / "b", progress=False)
    written = json.loads((tmp_path / "a" / "b" / "query.json").read_text())
    assert written["patches"] == answer.patches
    assert written["grid"] == [2, 3]
    assert written["image_size"] == [64, 96]


def test_no_more_than_two_batches_of_images_are_alive():
    made: list[weakref.ref] = []
    most = 0

    class Lazy:
        def __len__(self):
            return 40

        def __getitem__(self, i):
            nonlocal most
            image = inputs(i, 1)[0]
            made.append(weakref.ref(image))
            most = max(most, sum(ref() is not None for ref in made))
            return image

    query(small(), Lazy(), GRID, 3, strategy="meal_ft", features="body", n_informative=10, batch_size=4, progress=False)
    assert len(made) == 41
    assert most <= 9  # two batches, and the first image, which tells the size


def test_progress_goes_to_a_function():
    told = []
    query(small(), inputs(), GRID, 3, strategy="entropy", batch_size=2, progress=lambda *stage: told.append(stage))
    assert told == [("score", 2, 5), ("score", 4, 5), ("score", 5, 5)]


def test_near_duplicates_are_kept_apart():
    """Twelve equal images: without a distance patches of one place may be asked for twice."""
    images = inputs(n=1).repeat(12, 1, 1, 1)
    asked = {"strategy": "entropy", "features": "body", "progress": False}
    cells = [patch % 6 for patch in query(small(), images, GRID, 4, **asked).ids.tolist()]
    assert len(set(cells)) < 4
    cells = [patch % 6 for patch in query(small(), images, GRID, 4, min_distance=0.05, **asked).ids.tolist()]
    assert len(set(cells)) == 4


def test_strategies_that_look_at_outputs_work_on_any_network_and_others_say_what_they_want():
    network, images = small().eval(), inputs()
    answer = query(network, images, GRID, 5, strategy="ripu_patch", progress=False, batch_size=2)
    with torch.no_grad():
        logits = network(images)
    found = measure(["histogram", "entropy"], logits, None,
                    Tiles.of(Grid(*GRID, *SIZE), logits.shape[2:], torch.device("cpu"), False))
    score = torch.special.entr(found["histogram"]).sum(1) * found["entropy"]
    assert answer.ids.tolist() == torch.argsort(score, descending=True, stable=True)[:5].tolist()
    with pytest.raises(InputError, match=r"Strategy 'badge' looks inside the network \(gradient\)"):
        query(network, images, GRID, 5, strategy="badge", progress=False)
    with pytest.raises(InputError, match="needs a temperature"):
        query(network, images, GRID, 5, strategy="entropy_calibrated", progress=False)
