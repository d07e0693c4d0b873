"""Backbones: their weights from a file, what is refused, and gradients of dilated layers."""

import shutil

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import BACKBONE, noise, stir_norms, tiny_model

from meal_gpu.config import ModelConfig
from meal_gpu.configs.backbone import make
from meal_gpu.data.pixels import normalise
from meal_gpu.errors import InputError
from meal_gpu.network.backbone import DILATED, SHIPPED, create_backbone
from meal_gpu.network.backbone import weights_file as weights_file_of
from meal_gpu.network.model import DeepLabV3Plus


def weights_of(backbone: str, directory, seed: int = 5):
    torch.manual_seed(seed)
    file = directory / f"{backbone}.safetensors"
    network = timm.create_model(backbone)
    stir_norms(network)
    save_file(dict(network.state_dict()), file)
    return file


@pytest.mark.parametrize("backbone", [BACKBONE, "resnet18"])
def test_a_weights_file_is_what_the_backbone_holds(tmp_path, backbone):
    file = weights_of(backbone, tmp_path)
    model = tiny_model(backbone=backbone, weights=str(file))
    held = load_file(file)
    state = model.backbone.state_dict()
    assert len(state) > 100
    assert all(torch.equal(value, held[name]) for name, value in state.items())


def test_the_weights_that_ship():
    """Small enough for a package, of the backbone that is named beside them, and of no other."""
    model = tiny_model(backbone=SHIPPED["demo"], weights="demo")
    file = weights_file_of(ModelConfig(backbone=SHIPPED["demo"], weights="demo"))
    assert file.stat().st_size <= 1.5e6
    held = load_file(file)
    assert all(torch.equal(value, held[name]) for name, value in model.backbone.state_dict().items())
    assert all(value.isfinite().all() for value in held.values())
    with pytest.raises(InputError, match=r"'demo' are of the backbone mobilenetv2_035, and"):
        tiny_model(backbone="resnet18", weights="demo")


def test_weights_are_made_again_bit_by_bit(tmp_path, one_thread):
    """The command that made those which ship, on a few scenes; what it makes is taken as weights."""
    small = ["data.n_images=2", "data.n_val_images=1", "data.image_size=[64,96]", "train.final_epochs=1"]
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        make(file, small)
    assert files[0].read_bytes() == files[1].read_bytes()
    tiny_model(backbone=SHIPPED["demo"], weights=str(files[0]))


def test_the_real_weights(weights_file):
    model = DeepLabV3Plus(11, ModelConfig(weights=str(weights_file)))
    held = load_file(weights_file)
    state = model.backbone.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in state.items() if value.dim())
    # Trained filters see edges: a flat image and a noisy one are far apart in feature space.
    with torch.no_grad():
        model.eval()
        flat = model.features(normalise(torch.full((1, 64, 64, 3), 127, dtype=torch.uint8)))[1]
        busy = model.features(normalise(noise(1, 64, 64)))[1]
    assert flat.isfinite().all()
    assert float((flat - busy).norm() / flat.norm()) > 0.5


def test_a_file_that_lacks_tensors_is_refused(tmp_path):
    """timm leaves such tensors at random values, and a frozen backbone would never show it."""
    held = load_file(weights_of(BACKBONE, tmp_path))
    for missing in ("conv_stem.weight", "blocks.2.0.bn1.running_mean"):
        part = {name: value for name, value in held.items() if name != missing}
        save_file(part, tmp_path / "part.safetensors")
        with pytest.raises(InputError, match=f"lacks 1 of the tensors of model.backbone '{BACKBONE}', {missing}"):
            tiny_model(weights=str(tmp_path / "part.safetensors"))
    save_file({"elsewhere": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"conv_stem.weight among them. Use weights of that backbone"):
        tiny_model(weights=str(tmp_path / "other.safetensors"))


def test_weights_that_do_not_fit_or_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=f"model.backbone '{BACKBONE}' .*cannot be built: .*size mismatch") as error:
        tiny_model(weights=str(weights_of("mobilenetv2_050", tmp_path)))
    assert str(error.value).count("size mismatch") == 1  # not a line for each of 200 tensors
    whole = weights_of(BACKBONE, tmp_path).read_bytes()
    for name, content in {"empty": b"", "garbage": b"garbage" * 99, "half": whole[: len(whole) // 2]}.items():
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.safetensors' cannot be built"):
            tiny_model(weights=str(file))
    shutil.copy(tmp_path / f"{BACKBONE}.safetensors", tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights.pth', a pickle"):
        tiny_model(weights=str(tmp_path / "weights.pth"))
    with pytest.raises(InputError, match=r"there is no such file. Allowed: imagenet .*none, or the path"):
        tiny_model(weights=str(tmp_path / "nowhere.safetensors"))


@pytest.mark.parametrize(("backbone", "message"), [
    ("mobilenet2_100", "which timm does not know. Did you mean 'mobile"),
    ("hf-hub:someone/something", "which timm does not know"),
    ("vgg11", "cannot be dilated to model.output_stride 16. Its own stride is 32"),
    ("efficientvit_b0", "cannot be dilated"),
])
def test_backbones_that_cannot_be_used_are_refused(backbone, message):
    with pytest.raises(InputError, match=message):
        tiny_model(backbone=backbone)


@pytest.mark.parametrize("stride", [16, 8])
def test_gradients_of_dilated_depthwise_convolutions_read_no_foreign_memory(stride):
    """In bfloat16 and channels_last PyTorch's CPU kernel does: the gradient then is whatever lay there before."""
    model = tiny_model(freeze_backbone=False, output_stride=stride)
    dilated = [module for module in model.backbone.modules() if isinstance(module, torch.nn.Conv2d)
               and module.groups > 1 and max(module.dilation) > 1]
    assert dilated
    for conv in {(conv.in_channels, conv.dilation): conv for conv in dilated}.values():
        x = torch.randn(2, conv.in_channels, 23, 30).to(memory_format=torch.channels_last)
        given = torch.randn(2, conv.in_channels, 23, 30)
        rubbish = [torch.full((2**20,), 1e30) for _ in range(8)]
        del rubbish  # what is allocated next is not zero
        conv.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        y.float().backward(given)
        weight = conv.weight.detach().double().requires_grad_()
        F.conv2d(x.double(), weight, None, conv.stride, conv.padding, conv.dilation, conv.groups).backward(
            given.double())
        torch.testing.assert_close(conv.weight.grad.double(), weight.grad, atol=2e-2, rtol=2e-2)


def test_a_frozen_backbone_stays_in_the_autocast_dtype():
    model = tiny_model(freeze_backbone=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low, high = model.features(normalise(noise(1, 64, 64)))
    assert low.dtype == high.dtype == torch.bfloat16


@pytest.mark.parametrize("name", DILATED)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_backbones_that_messages_name_can_be_dilated(name, stride):
    with torch.device("meta"):
        maps = timm.create_model(name, features_only=True, output_stride=stride).eval()(torch.zeros(1, 3, 64, 96))
    assert (64 // 4, 96 // 4) in [tuple(m.shape[2:]) for m in maps]
    assert maps[-1].shape[2:] == (64 // stride, 96 // stride)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "hrnet_w18_small",
                                  "densenet121"])
def test_backbones_that_cannot_be_dilated_are_named_with_others_that_can(name):
    """It was timm's inner message: an unexpected keyword argument, or nothing."""
    with pytest.raises(InputError) as error:
        create_backbone(ModelConfig(backbone=name, weights="none"))
    assert f"model.backbone '{name}' cannot be dilated to model.output_stride 16" in str(error.value)
    assert "resnet18" in str(error.value)
    assert ("model.output_stride: 32 takes it" in str(error.value)) == (name in ("hrnet_w18_small", "densenet121"))


def test_a_backbone_is_taken_as_it_is_where_the_stride_is_its_own():
    network = create_backbone(ModelConfig(backbone="densenet121", weights="none", output_stride=32)).eval()
    low, high = network(torch.zeros(1, 3, 64, 96))
    assert (low.shape[2:], high.shape[2:]) == ((16, 24), (2, 3))


def test_a_pickle_of_weights_names_the_line_that_converts_it(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(InputError, match=r"python -c .*save_file.*w.safetensors"):
        create_backbone(ModelConfig(weights=str(tmp_path / "w.pth")))


def test_home_is_expanded_in_the_path_of_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    state = timm.create_model(BACKBONE, features_only=True).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    create_backbone(ModelConfig(backbone=BACKBONE, weights="~/w.safetensors"))
