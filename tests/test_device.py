"""The query procedure on a CUDA device that is only pretended: which device every tensor is on, and who waits for it.

`FakeTensorMode` carries shapes, dtypes and devices through the real code without computing. An operation that mixes
devices raises, and so does one whose result the host would have to wait for.
"""

import pytest
import torch
from tiny import tiny_backend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from meal_gpu.config import ModelConfig, QueryConfig
from meal_gpu.features import Features
from meal_gpu.frames import HeldFrames
from meal_gpu.grid import Grid
from meal_gpu.model import DeepLabV3Plus
from meal_gpu.predict import predict
from meal_gpu.select import PoolView, entropy, seed_kmeans

CUDA = torch.device("cuda")
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14) and not torch.cuda.is_available(),
    reason="older PyTorch asks the driver for the device of a pretended index")


class Transfers(TorchDispatchMode):
    """Records every copy from the device to the host and every wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        on_device = any(isinstance(arg, torch.Tensor) and arg.device.type == "cuda" for arg in args)
        to_host = isinstance(result, torch.Tensor) and result.device.type == "cpu"
        if on_device and (to_host or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.found.append(name)
        return result


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
def test_scoring_and_selecting_stay_on_the_device(pretended, context, cached):
    images, model = pretended
    grid, backend = Grid(2, 3, 64, 96), tiny_backend()
    frames = HeldFrames.of(images, grid, context, CUDA)
    features = Features.of(frames, model, backend, cached)
    with Transfers() as transfers:
        seen = predict(model, features, {"score", "features", "probabilities"}, "entropy", backend)
        ids = torch.arange(36, device=CUDA)
        free = torch.ones(36, dtype=torch.bool, device=CUDA)
        view = PoolView(image=ids // 6, cell=ids % 6, free=free, n_free=36, labelled=~free, score=seen.score,
                        query=QueryConfig(n_query=4, n_informative=8),
                        uniforms=lambda n: torch.rand(n, dtype=torch.float64, device=CUDA))
        candidates = entropy(view, 8)
        picked = candidates[seed_kmeans(seen.features[candidates], 4, view.uniforms(4))]
    assert transfers.found == []
    for tensor, shape in ((seen.score, (36,)), (seen.features, (36, 112)), (seen.probabilities, (36, 5)),
                          (picked, (4,))):
        assert isinstance(tensor, FakeTensor)
        assert tensor.device.type == "cuda"
        assert tensor.shape == shape


def test_the_recorder_sees_a_transfer_and_a_wait(pretended):
    """What the test above relies on."""
    with Transfers() as transfers:
        torch.zeros(3, device=CUDA).cpu()
        assert transfers.found == ["_to_copy"]
        with pytest.raises(Exception, match="_local_scalar_dense"):
            bool(torch.zeros(1, device=CUDA).any())
