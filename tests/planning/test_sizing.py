"""What a run is foretold to need, against what it takes."""

import weakref

import pytest
import torch
from tiny import BACKBONE, TINY, noise, tiny_backend, tiny_config, tiny_features, tiny_model

from meal_gpu.config import Config, ModelConfig
from meal_gpu.data.frames import HeldFrames
from meal_gpu.engine.experiment import prepare
from meal_gpu.machine.backend import resolve
from meal_gpu.network.build import build
from meal_gpu.network.features import BATCH_PIXELS, PEAK_BYTES, Features
from meal_gpu.network.model import DeepLabV3Plus
from meal_gpu.planning.sizing import (
    Extent,
    Sizes,
    _LiveBytes,
    describe,
    gigabytes,
    measure,
    needs,
    peak_scoring,
    peak_training,
    place,
)

SIZES = Sizes(n_images=10, n_val_images=4, n_patches=160, pool=1000, val=400, masks=300, val_masks=200,
              features=3000, val_features=1200)


def config(**model: object) -> Config:
    return Config.load({**TINY, "model": {**TINY["model"], **model}})


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_foretold_sizes_are_what_stores_and_caches_take(tmp_path, context, dtype):
    """Odd sizes, so that maps are rounded up."""
    tiny = tiny_config(tmp_path, data={"image_size": [57, 83], "context": context})
    experiment = prepare(tiny)
    model, stores = tiny_model(), experiment.stores
    sizes = measure(tiny, tiny_backend(dtype), model, 6, 2)
    assert sizes.n_patches == 36
    assert sizes.pool == stores.train.images.nbytes
    assert sizes.val == stores.val.images.nbytes
    assert sizes.masks == stores.train.masks.nbytes
    assert sizes.val_masks == stores.val.masks.nbytes
    assert sizes.store == sum(f.stat().st_size for s in (stores.train, stores.val) for f in s.path.glob("*.u8"))
    for images, foretold in ((stores.train.images, sizes.features), (stores.val.images, sizes.val_features)):
        cached = Features.of(HeldFrames.of(images, experiment.grid, context, torch.device("cpu")), model,
                             tiny_backend(dtype), True)
        assert foretold == sum(part.nbytes for part in cached.cache)


@pytest.mark.parametrize(("model", "data", "budget", "expected"), [
    # the validation split first, which is read after each epoch: frozen features, masks; then the pool's features
    ({}, {}, 4400, ("streamed", "streamed", "resident", True, True)),
    # they do not fit: the pool's images
    ({}, {}, 4399, ("resident", "streamed", "resident", False, True)),
    ({}, {}, 2400, ("resident", "streamed", "resident", False, True)),
    ({}, {}, 2399, ("streamed", "streamed", "resident", False, True)),
    ({}, {}, 1200, ("streamed", "streamed", "streamed", False, True)),
    # the validation split's features do not fit: its images
    ({}, {}, 1199, ("streamed", "resident", "resident", False, False)),
    ({}, {}, 399, ("streamed", "streamed", "resident", False, False)),
    ({}, {}, 199, ("streamed", "streamed", "streamed", False, False)),
    # a trained backbone has no constant features
    ({"freeze_backbone": False}, {}, 10**6, ("resident", "resident", "resident", False, False)),
    ({"freeze_backbone": False}, {}, 1600, ("resident", "resident", "resident", False, False)),
    ({"freeze_backbone": False}, {}, 1599, ("streamed", "resident", "resident", False, False)),
    # what is asked for is done
    ({"cache_features": "never"}, {}, 10**6, ("resident", "resident", "resident", False, False)),
    ({"cache_features": "always"}, {}, 10, ("streamed", "streamed", "streamed", True, True)),
    ({}, {"placement": "resident"}, 10**6, ("resident", "streamed", "resident", True, True)),
    ({"cache_features": "never"}, {"placement": "streamed"}, 10**6,
     ("streamed", "streamed", "resident", False, False)),
    ({"cache_features": "never"}, {"placement": "resident"}, 10, ("resident", "streamed", "streamed", False, False)),
])
def test_placement_follows_the_budget(model, data, budget, expected):
    made = Config.load({**TINY, "model": {**TINY["model"], **model}, "data": {**TINY["data"], **data}})
    found = place(made, SIZES, budget)
    assert (found.images, found.val_images, found.val_masks, found.cache, found.val_cache) == expected
    held = (found.images == "resident") * 1000 + (found.val_images == "resident") * 400
    held += (found.val_masks == "resident") * 200
    assert found.device_bytes == held + found.cache * 3000 + found.val_cache * 1200
    if not data and "cache_features" not in model:
        assert found.device_bytes <= budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"model": {"freeze_backbone": False}}, {"data": {"context": "patch"}}],
                         ids=["frozen", "trained", "patch"])
def test_a_batch_takes_no_more_than_its_size_was_chosen_by(dtype, changes):
    """The default backbone, 19 classes: bytes per pixel at the peak of a forward pass."""
    made = Config.load({**TINY, **changes, "data": {**TINY["data"], "image_size": [256, 512], "grid": [4, 4],
                                                    **changes.get("data", {})}})
    model = DeepLabV3Plus(19, ModelConfig(weights="none"))
    pixels = BATCH_PIXELS // (256 * 512) * (256 * 512)
    assert 0.3 * PEAK_BYTES < peak_scoring(made, tiny_backend(dtype), model) / pixels <= PEAK_BYTES


@pytest.mark.parametrize("peak", [peak_scoring, peak_training])
def test_peaks_do_not_depend_on_where_the_network_is(tmp_path, peak):
    """A run on a GPU asks with the network there: on another device than the made-up images, which PyTorch refused."""
    tiny, backend, model = tiny_config(tmp_path), tiny_backend(), tiny_model()
    here = peak(tiny, backend, model)
    assert peak(tiny, backend, model.to("meta")) == here


@pytest.mark.parametrize("changes", [{}, {"context": "patch"}])
def test_the_peak_of_scoring_is_that_of_the_real_pass(tmp_path, changes):
    """The same count over a real pass of one batch; 120 images of 64 x 96 are a batch, 200 are more."""
    tiny = tiny_config(tmp_path, data=changes)
    model, backend = tiny_model(), resolve(tiny)
    foretold = peak_scoring(tiny, backend, model)
    features = tiny_features(model, noise(1_400_000 // (64 * 96), 64, 96), (2, 3), tiny.data.context, backend=backend)
    from meal_gpu.stages.predict import predict

    with _LiveBytes() as counted:
        predict(model, features, {"score"}, "entropy", backend)
    # The real pass also makes normalised pixels step by step, and looks up matrices.
    assert foretold == pytest.approx(counted.peak, rel=0.35)


def test_finetuning_takes_more_and_a_larger_batch_too():
    frozen, trained = (peak_training(config(freeze_backbone=f), tiny_backend(), tiny_model(freeze_backbone=f))
                       for f in (True, False))
    assert trained > 1.5 * frozen
    # Gradients are there whatever the batch; the rest grows with it.
    four, eight, twelve = (
        peak_training(Config.load({**TINY, "train": {"batch_size": n}}), tiny_backend(), tiny_model())
        for n in (32, 64, 96))
    assert twelve - eight == pytest.approx(eight - four, rel=0.02)
    assert eight - four > 1e6


def test_images_in_a_mirror_and_patches_beside_take_theirs():
    """Consistency sees twice as many patches twice: what grows with the batch is four times as much."""
    def growth(**train: object) -> int:
        few, many = (peak_training(Config.load({**TINY, "train": {"batch_size": n, **train}}), tiny_backend(),
                                   tiny_model()) for n in (16, 32))
        return many - few

    assert growth(consistency=1.0) == pytest.approx(4 * growth(flip=True), rel=0.2)


def test_the_count_follows_what_lives():
    with _LiveBytes() as counted:
        a = torch.zeros(1000)
        b = a + 1
        del b
        c = a.view(10, 100) + 1  # a view is no new memory
        d = c.t().contiguous()
        assert counted.live == 3 * 4000
        del a, c, d
        assert counted.live == 0
    assert counted.peak == 3 * 4000
    assert weakref.getweakrefcount(torch.zeros(1).untyped_storage()) == 0


@pytest.mark.parametrize("backbone", [BACKBONE, "resnet18"])
def test_shapes_of_maps_are_computed_without_weights(backbone):
    """Kept from network to network, and never another stride's or size's."""
    for stride, size in ((16, (57, 83)), (8, (57, 83)), (16, (83, 57)), (16, (57, 83))):
        model = DeepLabV3Plus(3, config(backbone=backbone, output_stride=stride).model).train()
        shapes = model.map_shapes(*size)
        with torch.no_grad():
            assert shapes == tuple(tuple(maps.shape[1:]) for maps in model.eval().features(torch.zeros(1, 3, *size)))


def test_the_description_of_a_demo_draws_nothing(tmp_path):
    tiny = tiny_config(tmp_path)
    shown = describe(tiny, resolve(tiny), Extent.of(tiny))
    assert not (tmp_path / "store").exists()
    assert shown["pool"] == "6 images, 36 patches; 2 images to validate on"
    assert shown["placement"].startswith("streamed (read once")
    small = tiny.model_copy(update={"data": tiny.data.model_copy(update={"budget_gb": 1e-6})})
    assert "do not fit into the budget of 0 MB" in describe(small, resolve(small), Extent.of(small))["placement"]
    assert "computed again in every round" in describe(small, resolve(small), Extent.of(small))["features"]


@pytest.mark.parametrize("strategy", ["ensemble", "ensemble_votes", "bald"])
def test_an_ensembles_members_are_held_together(tmp_path, strategy):
    one, five, unknown = (tiny_config(tmp_path, **{"query.strategy": name, "query.members": 5})
                          for name in ("entropy", strategy, "no such strategy"))
    extent = Extent.of(one)
    model = build(extent.n_classes, one.model)
    weights = sum(value.nbytes for value in model.state_dict().values())
    least, more = (needs(each, resolve(each), extent) for each in (one, five))
    members = 0 if strategy == "bald" else 4
    assert more.device - least.device == members * weights
    assert ("other members of the ensemble" in more.described["device memory"]) == bool(members)
    assert needs(unknown, resolve(one), extent).device == least.device


def test_the_description_of_a_sharded_run(tmp_path):
    """This process holds nothing of the pool; each of two workers holds half, within a third of the memory."""
    tiny = tiny_config(tmp_path, **{"query.scoring": "sharded", "query.workers": 2})
    shown = describe(tiny, resolve(tiny), Extent.of(tiny))
    assert shown["placement"] == "streamed (the workers hold the pool)"
    assert "kept by the workers" in shown["features"]
    half = gigabytes(measure(tiny, resolve(tiny), tiny_model(), 3, 0).features)
    assert shown["workers"] == f"2 processes on this machine, each with 3 images at most, {half} of features kept"
    for workers, text in (("cuda", "one for each of"), ("tcp://there:8786", "the scheduler at tcp://there:8786")):
        elsewhere = tiny.revised("query", workers=workers)
        assert text in describe(elsewhere, resolve(elsewhere), Extent.of(elsewhere))["workers"]
    small = tiny.revised("data", budget_gb=1e-6)
    assert "images streamed" in describe(small, resolve(small), Extent.of(small))["workers"]


def test_bytes_for_people():
    assert (gigabytes(4_680_000_000), gigabytes(190_252_800)) == ("4.68 GB", "190 MB")
