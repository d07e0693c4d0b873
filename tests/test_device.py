"""The query procedure on a CUDA device that is only pretended, and who reads device memory from the host.

`FakeTensorMode` carries shapes, dtypes and devices through the real code without computing. An operation that mixes
devices raises, and so does one whose result the host would have to wait for. What it cannot go through, the whole
query, runs on the CPU, with every call counted that would stop a GPU.
"""

import dataclasses
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from tiny import noise, tiny_backend, tiny_config, tiny_model
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import meal_gpu.engine.acquire as acquire_module
from meal_gpu.config import ModelConfig, QueryConfig, TrainConfig
from meal_gpu.data.frames import HeldFrames
from meal_gpu.engine.acquire import acquire
from meal_gpu.engine.experiment import prepare
from meal_gpu.engine.learning import learn
from meal_gpu.engine.rounds import initial_patches
from meal_gpu.grid import Grid
from meal_gpu.machine import rapids
from meal_gpu.machine.transfers import Transfers
from meal_gpu.network.features import Features, logits_of
from meal_gpu.network.model import DeepLabV3Plus
from meal_gpu.stages.embed import Embedding
from meal_gpu.stages.evaluate import Score, confusion
from meal_gpu.stages.lessons import Lessons
from meal_gpu.stages.members import DISAGREEMENTS
from meal_gpu.stages.predict import predict, predict_batch
from meal_gpu.stages.recipe import MovingMean
from meal_gpu.stages.statistics import STATISTICS, tiles_on
from meal_gpu.stages.train import patch_loss, train_epoch
from meal_gpu.stages.unlabelled import Unlabelled
from meal_gpu.strategies.select import STRATEGIES, PoolView, entropy, seed_kmeans, snap_kmeans
from meal_gpu.timing import StageClock

CUDA = torch.device("cuda")
WHOLE = TrainConfig(ema=0.9, pseudo_labels=2, pseudo_threshold=0.2, flip=True, scale=2.0, colour=0.4, classmix=0.5,
                    consistency=1.0)
"""Every part of the recipe that a step sees."""
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14) and not torch.cuda.is_available(),
    reason="older PyTorch asks the driver for the device of a pretended index")


@pytest.fixture
def pretended():
    """Images, network and features of six images on a device that is not there."""
    model = DeepLabV3Plus(5, ModelConfig(backbone="mobilenetv2_035", weights="none"))
    with FakeTensorMode():
        for module in model.modules():  # `Module.to` cannot swap in fake tensors
            for held in (module._parameters, module._buffers):
                for name, value in held.items():
                    if value is not None:
                        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CUDA)
                        held[name] = torch.nn.Parameter(fake) if held is module._parameters else fake
        yield torch.zeros(6, 64, 96, 3, dtype=torch.uint8, device=CUDA), model


@pytest.mark.filterwarnings("ignore:User provided device_type")
@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("cached", [True, False])
def test_scoring_and_selecting_stay_on_the_device(pretended, context, cached, monkeypatch):
    monkeypatch.setattr(rapids, "kmeans_centroids", lambda points, n, seed: points[:n].double())
    images, model = pretended
    grid, backend = Grid(2, 3, 64, 96), tiny_backend()
    frames = HeldFrames.of(images, grid, context, CUDA)
    features = Features.of(frames, model, backend, cached)
    with Transfers() as counted:
        seen = predict(model, features, {"score", "features", "probabilities"}, "entropy", backend)
        ids = torch.arange(36, device=CUDA)
        free = torch.ones(36, dtype=torch.bool, device=CUDA)
        view = PoolView(image=ids // 6, cell=ids % 6, free=free, n_free=36, labelled=~free, score=seen.score,
                        query=QueryConfig(n_query=4, n_informative=8),
                        uniforms=lambda n: torch.rand(n, dtype=torch.float64, device=CUDA))
        candidates = entropy(view, 8)
        picked = candidates[seed_kmeans(seen.features[candidates], 4, view.uniforms(4))]
        clustered = candidates[snap_kmeans(seen.features[candidates], 4, 0, "cuml")]
    assert counted.reads == {}
    for tensor, shape in ((seen.score, (36,)), (seen.features, (36, 112)), (seen.probabilities, (36, 5)),
                          (picked, (4,)), (clustered, (4,))):
        assert isinstance(tensor, FakeTensor)
        assert tensor.device.type == "cuda"
        assert tensor.shape == shape


ON_THE_HOST = {"typiclust", "spectral"}
"""They cluster there. `bald` draws from a generator of the device, which cannot be pretended."""


@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_strategies_wait_for_nothing_before_their_ids(pretended, monkeypatch):
    """All that one pass can give, and every strategy's choice among 36 patches."""
    monkeypatch.setattr(rapids, "kmeans_centroids", lambda points, n, seed: points[:n].double())
    images, model = pretended
    features = Features.of(HeldFrames.of(images, Grid(2, 3, 64, 96), "image", CUDA), model, tiny_backend(), False)
    ids = torch.arange(36, device=CUDA)
    free = torch.ones(36, dtype=torch.bool, device=CUDA)
    try:
        with Transfers() as counted:
            needs = {"score", "features", "probabilities", "mirrored", "flip_js", *STATISTICS, *DISAGREEMENTS}
            seen = predict(model, features, needs, "entropy", tiny_backend(), members=[model, model])
        assert counted.reads == {}
        for name, strategy in STRATEGIES.items():
            if name in ON_THE_HOST or "bald" in strategy.needs:
                continue
            view = PoolView(image=ids // 6, cell=ids % 6, free=free, n_free=36, labelled=~free, score=seen.score,
                            features=seen.features, query=QueryConfig(n_query=4, n_informative=8), kmeans="cuml",
                            uniforms=lambda n: torch.rand(n, dtype=torch.float64, device=CUDA),
                            place=lambda ids: seen.features[ids, :2], fit=lambda ids: seen.features[ids, :2],
                            of=lambda name, ids: seen.whole(name) if ids is None else seen.rows(name, ids))
            with Transfers() as counted:
                picked = strategy.choose(view, 4)
            assert counted.reads == {}, name
            assert isinstance(picked, FakeTensor)
            assert picked.shape == (4,)
    finally:
        tiles_on.cache_clear()


@pytest.mark.filterwarnings("ignore:User provided device_type")
@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("cached", [True, False])
def test_constants_go_to_the_device_once(pretended, context, cached, monkeypatch):
    """Six images in three batches: a pass sends its matrices (and the pixels' statistics), and the next sends none."""
    monkeypatch.setattr("meal_gpu.network.features.BATCH_PIXELS", 2 * 64 * 96)
    images, model = pretended
    frames = HeldFrames.of(images, Grid(2, 3, 64, 96), context, CUDA)
    features = Features.of(frames, model, tiny_backend(), cached)
    statistics = {"pixels.py: to_copy": 1}
    if cached:
        assert frames._statistics
    for expected in ({"features.py: to_copy": 4, "model.py: to_copy": 2, **({} if cached else statistics)}, {}):
        with Transfers() as counted:
            predict(model, features, {"score", "features", "probabilities"}, "entropy", tiny_backend())
        assert (counted.reads, counted.sends) == ({}, expected)


@pytest.mark.filterwarnings("ignore:User provided device_type")
@pytest.mark.parametrize("sizes", [[2, 2], [2, 2, 2, 2], [3, 2, 3]], ids=str)
def test_an_epoch_sends_its_indices_and_waits_for_nothing(pretended, sizes, monkeypatch):
    """Steps of patches, or of images with as many as they have: the frames' numbers and the places among the labels.

    Without the backward pass, for which PyTorch wants a driver; the test on the CPU counts its waits.
    """
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    images, model = pretended
    features = Features.of(HeldFrames.of(images, Grid(2, 3, 64, 96), "image", CUDA), model, tiny_backend(), True)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    labels, host_ids = torch.zeros(8, 32, 32, dtype=torch.uint8, device=CUDA), torch.arange(8, 16)
    ids, batches = host_ids.to(CUDA), torch.arange(sum(sizes)).split(sizes)
    model.train()
    for sends in ({"windows.py: to_copy": 14, "frames.py: to_copy": 2}, {"frames.py: to_copy": 2}):
        with Transfers() as counted:
            loss = train_epoch(model, features, ids, labels, batches, host_ids, optimiser, tiny_backend())
        assert (counted.reads, counted.sends) == ({}, sends)
        assert loss.device.type == "cuda"


@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_an_epoch_of_the_whole_recipe_waits_for_nothing(pretended, monkeypatch):
    """What it draws is sent before its first step, in as few copies as there are kinds of it.

    But for what depends on the host's own values, pretended as well: which patches the teacher is asked for, and where
    ClassMix pastes.
    """
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(Unlabelled, "beside", lambda unlabelled, patches: torch.cat([patches, patches]))
    config = WHOLE.model_copy(update={"classmix": 0.0})
    images, model = pretended
    features = Features.of(HeldFrames.of(images, Grid(2, 3, 64, 96), "image", CUDA), model, tiny_backend(), True)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    labels, host_ids = torch.zeros(8, 32, 32, dtype=torch.uint8, device=CUDA), torch.arange(8, 16)
    ids, batches, order = host_ids.to(CUDA), torch.arange(8).split(4), torch.Generator().manual_seed(0)
    mean = MovingMean(model, config.ema)
    lessons = Lessons.of(model.train(), features, ids, host_ids, labels, config, order, mean)
    for _ in range(2):
        with Transfers() as counted:
            loss = train_epoch(model, features, ids, labels, batches, host_ids, optimiser, tiny_backend(),
                               mean.follow, lessons)
        assert counted.reads == {}
        assert counted.sends.get("frames.py: to_copy", 0) <= 9
        assert loss.device.type == "cuda"
    assert set(counted.sends) == {"frames.py: to_copy"}


@pytest.mark.filterwarnings("ignore:User provided device_type")
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("where", ["cuda", "cpu"])
def test_an_evaluation_waits_for_nothing_before_its_confusion_matrix(pretended, cached, context, where, monkeypatch):
    """Six images in three batches; masks on the device are not sent, masks on the host ahead of their use."""
    monkeypatch.setattr("meal_gpu.network.features.BATCH_PIXELS", 2 * 64 * 96)
    images, model = pretended
    grid = Grid(2, 3, 64, 96)
    features = Features.of(HeldFrames.of(images, grid, context, CUDA), model, tiny_backend(), cached)
    masks = HeldFrames.of(torch.zeros(6, 64, 96, dtype=torch.uint8, device=where), grid, context, CUDA)
    features.upsampling, features.frames._statistics  # noqa: B018  once per network
    with Transfers() as counted:
        counts = confusion(model, features, masks, 5, tiny_backend())
        assert counted.waits == 0
        with pytest.raises(Exception, match=r"tolist|_local_scalar_dense|meta|fake"):  # there is nothing to be read
            Score.of(counts)
    assert counted.waits <= 1
    assert counted.sends == ({} if where == "cuda" else {"frames.py: to_copy": 3})
    assert counts.device.type == "cuda"


class Traffic(TorchDispatchMode):
    """Launches on the device, and the bytes of the tensors that they are given and give."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor) and t.is_cuda]
        if tensors and not function.is_view and function.namespace != "prim" and "view" not in str(function):
            self.launches += 1
            self.bytes += sum(t.numel() * t.itemsize for t in {id(t): t for t in tensors}.values())
        return result


@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize(("context", "frame"), [("image", (512, 1024)), ("patch", (128, 256))])
def test_the_tail_of_an_evaluation_moves_little(context, frame, where, monkeypatch):
    """From logits to counts, 512 x 1024 and 19 classes in bfloat16: 3 MB an image, 4 launches a batch (146 MB and 15,
    before there was a kernel). Four images in two batches."""
    backend, grid, (height, width) = tiny_backend(torch.bfloat16), Grid(4, 4, 512, 1024), frame
    n, windows = 2 * grid.per_image(context), tiny_model(19).windows
    with FakeTensorMode():
        logits = torch.empty(n, 19, height // 4, width // 4, dtype=torch.bfloat16, device=CUDA)
        monkeypatch.setattr("meal_gpu.stages.evaluate.logits_of", lambda model, given, up, backend: (logits, None))
        monkeypatch.setattr("meal_gpu.stages.evaluate.for_scoring", lambda model, backend: model)
        frames = HeldFrames.of(torch.empty(4, 512, 1024, 3, dtype=torch.uint8, device=CUDA), grid, context, CUDA)
        maps = torch.empty(2 * n, 1, 1, 1, device=CUDA)
        low, high = (height // 4, width // 4), (height // 16, width // 16)
        features = Features(frames, backend, low, high, low, windows, n, cache=(maps, maps))
        features.upsampling  # noqa: B018
        masks = HeldFrames.of(torch.empty(4, 512, 1024, dtype=torch.uint8, device=where), grid, context, CUDA)
        with Traffic() as traffic:
            counts = confusion(SimpleNamespace(align_corners=True), features, masks, 19, backend)
    assert counts.shape == (19, 19)
    assert traffic.launches <= 2 * 4
    assert traffic.launches == 1 + 2 * (1 if (context, where) == ("image", "cuda") else 2)
    assert traffic.bytes / 4 <= 3e6


@pytest.mark.parametrize("frozen", [True, False])
def test_a_training_reads_a_loss_per_epoch(tmp_path, frozen):
    """On the CPU, where the order of the samples, which is drawn and sorted on the host, is counted as well."""
    experiment = prepare(tiny_config(tmp_path, **{"model.freeze_backbone": frozen}))
    pool, ids = experiment.new_pool(), initial_patches(experiment, 0)
    pool.reveal(ids, torch.zeros(len(ids), 32, 32, dtype=torch.uint8))
    clock = StageClock(torch.device("cpu"))
    with Transfers() as counted:
        learn(experiment, pool, 0, 0, clock)
    on_the_host = {"train.py: tolist": 2, **({} if frozen else {"features.py: unique2": 6})}
    assert counted.reads == {"train.py: cpu": 1, "train.py: float": 2, "evaluate.py: tolist": 2} | on_the_host


class OnHost(TorchDispatchMode):
    """Remembers what makes tensors on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in tree_leaves(result)):
            self.found.add(str(function))
        return result


@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_nothing_is_made_on_the_host_that_a_graph_could_not_record(pretended):
    """A single number there, and PyTorch records no graph: the pass over the pool, and a step's loss."""
    (images, model), backend = pretended, tiny_backend()
    features = Features.of(HeldFrames.of(images, Grid(2, 3, 64, 96), "image", CUDA), model, backend, False)
    constants = features.upsampling, features.means[features.low_size], features.means[features.high_size]
    _, given = next(features.given())
    windows, cells = features.windows, torch.zeros(4, dtype=torch.int64, device=CUDA)
    labels = torch.zeros(4, 32, 32, dtype=torch.uint8, device=CUDA)
    low, high = (torch.zeros(4, *shape, device=CUDA) for shape in model.map_shapes(64, 96))
    with OnHost() as host:
        with torch.no_grad():
            predict_batch(model.eval(), given, *constants, features.frames.grid, ("score", "features", "probabilities"),
                          "entropy", backend)
        patch_loss(model.train(), low, high, windows, cells, labels, backend)
    assert host.found == set()


class Made(TorchDispatchMode):
    """Remembers the tensors that are made, without keeping them."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[weakref.ref[torch.Tensor]] = []
        self.operations: set[tuple[str, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        values = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        given = {id(value) for value in tree_leaves((args, kwargs))}  # in place
        self.tensors += [weakref.ref(value) for value in values if id(value) not in given]
        floating = ["float"] if any(value.is_floating_point() for value in values) else []
        accumulates = ["accumulate"] if "index_put" in str(function) and True in args[3:] else []
        self.operations.add((function.overloadpacket.__name__, *floating, *accumulates))
        return result

    def left(self) -> list[torch.Tensor]:
        gc.collect()
        return [value for made in self.tensors if (value := made()) is not None]


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_outlives_a_call_that_may_be_recorded(frozen):
    """What is handed to `Backend.compiled`: a tensor that stays behind would lie in a graph's own memory."""
    model, backend = tiny_model(freeze_backbone=frozen), tiny_backend()
    frames = HeldFrames.of(noise(4, 64, 96), Grid(2, 3, 64, 96), "image", torch.device("cpu"))
    features = Features.of(frames, model, backend, False)
    constants = features.upsampling, features.means[features.low_size], features.means[features.high_size]
    windows, cells = features.windows, torch.zeros(4, dtype=torch.int64)
    labels = torch.zeros(4, 32, 32, dtype=torch.uint8)
    _, given = next(features.given())
    low, high = model.features(*given)
    low, high = low.detach(), high.detach()
    calls = (lambda: predict_batch(model.eval(), given, *constants, frames.grid,
                                   ("score", "features", "probabilities"), "entropy", backend),
             lambda: logits_of(model.eval(), given, features.upsampling, backend),
             lambda: patch_loss(model.train(), low, high, windows, cells, labels, backend))
    for call in calls:
        with Made() as made:
            call()
        assert made.tensors
        assert made.left() == []


UNREPEATABLE = {"cumsum", "histc", "bincount", "kthvalue", "median", "put_", "scatter_reduce", "nll_loss2d_forward",
                "nll_loss2d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
                "upsample_linear1d_backward", "upsample_nearest2d_backward", "_adaptive_avg_pool2d_backward",
                "_adaptive_avg_pool3d_backward", "avg_pool3d_backward", "max_pool3d_with_indices_backward",
                "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "max_unpooling2d",
                "reflection_pad1d_backward", "reflection_pad2d_backward", "replication_pad2d_backward",
                "grid_sampler_2d_backward", "embedding_dense_backward", "_embedding_bag_backward",
                "_ctc_loss_backward", "_pdist_backward"}
"""What `torch.use_deterministic_algorithms` refuses on CUDA, as its documentation lists it (2.14)."""


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("whole", [False, True], ids=["paper", "recipe"])
def test_a_training_step_has_only_operations_that_repeat_themselves_on_cuda(frozen, whole):
    """A training on CUDA raises at anything else, and that only there: forward and backward, frozen and finetuned."""
    model, backend = tiny_model(freeze_backbone=frozen), tiny_backend()
    frames = HeldFrames.of(noise(4, 64, 96), Grid(2, 3, 64, 96), "image", torch.device("cpu"))
    features = Features.of(frames, model, backend, frozen)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    ids = torch.tensor([0, 1, 7, 13])
    labels = torch.zeros(4, 32, 32, dtype=torch.uint8)
    mean = MovingMean(model, WHOLE.ema)
    lessons = Lessons.of(model, features, ids, ids, labels, WHOLE, torch.Generator(), mean) if whole else None
    with Made() as made:
        train_epoch(model.train(), features, ids, labels, [torch.arange(4)], ids, optimiser, backend, mean.follow,
                    lessons)
    names = {name for name, *_ in made.operations}
    assert {"convolution_backward", "native_batch_norm_backward"} & names
    assert names & UNREPEATABLE == set()
    for name, *how in made.operations:  # these may, in one of their forms
        assert not (name in ("scatter_add_", "scatter_add") and "float" in how), name
        assert name not in ("index_put", "index_put_", "_unsafe_index_put") or "accumulate" in how, name
    with Made() as made:
        torch.nn.functional.interpolate(torch.ones(1, 1, 2, 2, requires_grad=True), scale_factor=2,
                                        mode="bilinear").sum().backward()
    assert {name for name, *_ in made.operations} & UNREPEATABLE == {"upsample_bilinear2d_backward"}


@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_running_sums_on_cuda_are_taken_along_rows():
    """PyTorch gives a vector's to CUB, whose order of additions changes from run to run; rows have a kernel of their
    own. So equal seeds pick equal patches, of any number of candidates."""
    seen = []

    class Sums(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket.__name__ == "cumsum":
                seen.append((args[0].numel(), args[0].shape[args[1]]))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), Sums():
        seed_kmeans(torch.zeros(5000, 2, device=CUDA), 3, torch.zeros(3, dtype=torch.float64, device=CUDA))
    assert len(seen) == 3
    assert all(elements > along for elements, along in seen)
    points, uniforms = torch.randn(300, 2), torch.rand(20, dtype=torch.float64)
    row = torch.rand(300, dtype=torch.float64)
    assert torch.equal(row.expand(2, -1).cumsum(1)[0], row.cumsum(0))
    assert len(seed_kmeans(points, 20, uniforms).unique()) == 20


READ_ONCE = {"acquire.py: tolist": 1}
"""The chosen ids, their scores and whether both are right, in one piece: all that a query reads."""


@pytest.mark.parametrize(("strategy", "frozen", "allowed"), [
    ("random", True, READ_ONCE), ("entropy", True, READ_ONCE), ("meal", True, READ_ONCE), ("entropy", False, READ_ONCE),
    # Before anything is embedded the vectors are looked at once: the libraries take no NaN.
    ("meal", False, {**READ_ONCE, "acquire.py: int": 1}), ("meal_ft", True, {**READ_ONCE, "acquire.py: int": 1}),
])
@pytest.mark.parametrize("selector", ["seeding", "kmeans"])
def test_a_query_reads_once(tmp_path, monkeypatch, strategy, frozen, allowed, selector):
    """A whole query on the CPU; in place of UMAP and k-means two columns, as a library on the device gives them."""
    plane = Embedding(torch.randn(36, 2, generator=torch.Generator().manual_seed(0)), lambda vectors: vectors[:, :2])
    monkeypatch.setattr(acquire_module, "fit", lambda vectors, *args: Embedding(vectors[:, :2]))
    monkeypatch.setattr(rapids, "kmeans_centroids", lambda points, n, seed: points[:n].double() + 0.1)
    experiment = prepare(tiny_config(tmp_path, **{"query.strategy": strategy, "query.selector": selector,
                                                  "model.freeze_backbone": frozen}))
    experiment.backend = dataclasses.replace(experiment.backend, kmeans="cuml")
    experiment.embeddings.fitted[0] = plane
    if frozen:
        experiment.embeddings.vectors  # noqa: B018  once in a run
    pool, ids = experiment.new_pool(), initial_patches(experiment, 0)
    pool.reveal(ids, torch.zeros(len(ids), 32, 32, dtype=torch.uint8))
    model = experiment.new_model(0, 0)
    with Transfers() as counted:
        query = acquire(experiment, pool, model, 0, 0, StageClock(torch.device("cpu")))
    assert counted.reads == allowed
    assert bool(pool.free[query.ids].all())
    assert len(query.ids.unique()) == 4


def test_the_recorder_sees_what_would_stop_a_gpu():
    """What the tests above rely on; here nothing but the test is at work."""
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    for read, name in ((lambda: x.cpu(), "cpu"), (lambda: x.tolist(), "tolist"), (lambda: x.numpy(), "numpy"),
                       (lambda: float(x[0]), "float"), (lambda: bool(x[0] > 0), "bool"), (lambda: x[0].item(), "item"),
                       (lambda: mask.nonzero(), "nonzero"), (lambda: x[mask], "index"), (lambda: x.unique(), "unique2"),
                       (lambda: x.masked_select(mask), "masked_select")):
        with Transfers() as counted:
            read()
        assert counted.reads == {f"outside: {name}": 1}
    with Transfers() as counted:
        x[torch.tensor([1, 2])].sum().add(1).sort()
    assert counted.reads == {}


def test_the_recorder_sees_a_transfer_and_a_wait_on_a_pretended_device(pretended):
    with Transfers() as counted:
        torch.zeros(3, device=CUDA).to("cpu")
        torch.zeros(3).copy_(torch.zeros(3, device=CUDA))
        torch.zeros(3, device=CUDA).copy_(torch.zeros(3))
        torch.zeros(3).to(CUDA, torch.bfloat16)
        torch.tensor([1.0], device=CUDA)
        torch.zeros(3, device=CUDA).to(CUDA, torch.bfloat16)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            bool(torch.zeros(1, device=CUDA).any())
    assert counted.reads == {"outside: to_copy": 1, "outside: copy": 1, "outside: bool": 1}
    assert counted.sends == {"outside: to_copy": 1, "outside: copy": 1, "outside: tensor": 1}
    assert (counted.blocked, counted.waits) == (counted.sends, 6)
    with Transfers() as counted:
        torch.zeros(3).to(CUDA, non_blocking=True)
        torch.zeros(3, device=CUDA).copy_(torch.zeros(3), non_blocking=True)
        torch.zeros(3, device=CUDA).copy_(torch.zeros(3), True)
    assert counted.sends == {"outside: to_copy": 1, "outside: copy": 2}
    assert (counted.blocked, counted.waits) == ({}, 0)
