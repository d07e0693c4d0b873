"""Backbones: any network of timm that can be asked for its features, with ImageNet's weights or a file's."""

import functools
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import InputError, did_you_mean
from ..paths import expand
from . import pretrained

DILATED = ("mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "resnet18", "resnet50", "convnext_tiny",
           "regnety_002")
"""Examples of backbones that give every output stride (there is a test), for messages."""
SHIPPED = {"demo": "mobilenetv2_035"}
"""Weights that ship with meal-gpu, in ``configs/NAME.safetensors``, and the backbone that they are of."""


def create_backbone(config: ModelConfig) -> Any:
    """A timm network that gives its features at stride 4 and at ``output_stride``, with the weights asked for.

    Where timm cannot dilate a network and the stride is the network's own, it is taken as it is.

    Raises `InputError` where it is unknown or cannot be dilated so, and for weights that do not exist or do not fit it.
    """
    if not timm.is_model(config.backbone):
        raise InputError(f"model.backbone is '{config.backbone}', which timm does not know."
                         f"{did_you_mean(config.backbone, timm.list_models())}")
    file, overlay = None, None
    if config.weights == "imagenet":
        overlay = pretrained.overlay(config.backbone)
    elif config.weights != "none":
        file = weights_file(config)
        overlay = {"file": str(file)}
    try:
        options = {"output_stride": config.output_stride}
        try:
            strides = timm.create_model(config.backbone, features_only=True, **options).feature_info.reduction()
        except (TypeError, AssertionError):  # what timm raises where a network knows no output stride, or not this one
            strides, options = _own_strides(config), {}
        backbone = timm.create_model(config.backbone, features_only=True, **options,
                                     out_indices=(strides.index(4), len(strides) - 1),
                                     pretrained=config.weights != "none", pretrained_cfg_overlay=overlay)
    except (RuntimeError, AttributeError, ValueError, NotImplementedError, SafetensorError, OSError, TypeError,
            AssertionError) as error:  # timm's backbones refuse in many ways what they do not offer
        reason = " ".join(str(error).split("\n", 2)[:2]) or type(error).__name__  # torch lists every tensor
        raise InputError(f"model.backbone '{config.backbone}' with output_stride {config.output_stride} and weights "
                         f"'{config.weights}' cannot be built: {reason}") from error
    if file is not None:
        _check_loaded(backbone, config, file)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.dilation) > 1:
            module.__class__ = _in_float32(type(module))  # type: ignore[arg-type]  # types are hashable
    return backbone


def weights_file(config: ModelConfig) -> Path:
    """The ``.safetensors`` file of ``weights``: one that ships, or a path. Raises `InputError` where it is none."""
    if config.weights in SHIPPED:
        if config.backbone != SHIPPED[config.weights]:
            raise InputError(f"model.weights '{config.weights}' are of the backbone {SHIPPED[config.weights]}, and "
                             f"model.backbone is '{config.backbone}'. Use that backbone, or other weights.")
        return Path(str(files("meal_gpu.configs") / f"{config.weights}.safetensors"))
    file = expand(config.weights)
    if file.is_file() and file.suffix in (".pth", ".pt", ".bin"):
        line = (f"import torch, safetensors.torch as s; s.save_file(torch.load('{file}', weights_only=True), "
                f"'{file.with_suffix('.safetensors')}')")
        raise InputError(f"model.weights is '{config.weights}', a pickle, and not a .safetensors file. Convert it "
                         f"once: python -c \"{line}\" (of a checkpoint, the entry that holds the weights, such as "
                         "['state_dict']).")
    if not file.is_file() or file.suffix != ".safetensors":
        problem = "it is no .safetensors file" if file.is_file() else "there is no such file"
        raise InputError(f"model.weights is '{config.weights}', and {problem}. Allowed: imagenet (timm downloads "
                         "them), demo (of drawn street scenes), none, or the path of a .safetensors file in timm's "
                         "naming.")
    return file


def _own_strides(config: ModelConfig) -> list[int]:
    """Strides of a network that cannot be dilated. Raises `InputError` where they are not the ones asked for."""
    try:
        with torch.device("meta"):
            network = timm.create_model(config.backbone, features_only=True).eval()
            strides: list[int] = network.feature_info.reduction()
            high = network(torch.zeros(1, 3, 96, 160))[-1]
        fits = tuple(high.shape[1:]) == (network.feature_info.channels()[-1], 96 // strides[-1], 160 // strides[-1])
    except Exception:  # networks of one image size, of windows, or without maps, each in its own way
        strides, fits = [], False
    if fits and 4 in strides and strides[-1] == config.output_stride:
        return strides
    own = f" Its own stride is {strides[-1]}: model.output_stride: {strides[-1]} takes it as it is." if (
        fits and 4 in strides and strides[-1] in (8, 16, 32)) else ""
    raise InputError(f"model.backbone '{config.backbone}' cannot be dilated to model.output_stride "
                     f"{config.output_stride}.{own} Choose for example {', '.join(DILATED)}.")


class _Float32(nn.Module):
    """Outside autocast while it is trained: see `_in_float32`."""

    weight: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        if not self.weight.requires_grad or x.is_meta:  # where there is no autocast
            return cast(Tensor, super().forward(x))
        with torch.autocast(x.device.type, enabled=False):
            return cast(Tensor, super().forward(x.float())).to(x.dtype)


@functools.cache  # compiled code asks for the kind of a module: all networks have the same
def _in_float32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """A convolution that trains in float32.

    On the CPU, in bfloat16 and channels_last, the weights' gradient of a dilated depthwise convolution reads memory
    that nobody wrote (torch 2.14): values of 1e33, and no two trainings alike. timm dilates the last stages for an
    output stride of 16 or 8. These layers are about a thousandth of the network's work, so every device does as the
    CPU must.
    """
    return type(kind.__name__, (_Float32, kind), {})


def base_of(kind: type[nn.Module]) -> type[nn.Module]:
    """The kind that a module had before `_in_float32`."""
    return kind.__mro__[2] if issubclass(kind, _Float32) else kind


def _check_loaded(backbone: nn.Module, config: ModelConfig, file: Path) -> None:
    """Raise `InputError` for a backbone that a file of weights left at random values in part.

    timm skips what a file lacks. Values are compared, since it may rename a file's tensors.
    """
    def digest(tensor: Tensor) -> bytes:
        return hashlib.blake2b(tensor.float().contiguous().numpy().tobytes(), digest_size=16).digest()

    held = {digest(tensor) for tensor in load_file(file).values()}
    # Scalars are counters of batches, which a file need not have.
    missing = [name for name, tensor in backbone.state_dict().items() if tensor.dim() and digest(tensor) not in held]
    if missing:
        raise InputError(f"model.weights '{config.weights}' lacks {len(missing)} of the tensors of model.backbone "
                         f"'{config.backbone}', {missing[0]} among them. Use weights of that backbone in timm's "
                         "naming.")
