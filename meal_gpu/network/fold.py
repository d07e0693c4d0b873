"""Batch-norms folded into the convolutions before them, in the copy of a network that scores and evaluates.

In eval mode a batch-norm is an affine map per channel, so that the convolution before it can do its work: a pass over
memory less per layer. Rounding differs: the weights are scaled before they are rounded to the autocast dtype.
"""

import copy
import weakref
from collections import Counter
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..machine.backend import Backend
from .backbone import base_of
from .interface import Network
from .model import ConvNormAct, DeepLabV3Plus

CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)
"""Whose weights are used as they are. Kinds that derive from them may standardise theirs, and stay as they are."""


def for_scoring(model: Network, backend: Backend) -> Network:
    """The network in eval mode, or its folded copy with the weights of now, as ``model.fold_norms`` says."""
    model.eval()
    if not backend.fold_norms:
        return model
    assert isinstance(model, DeepLabV3Plus)  # a config with a factory folds nothing
    twin = _TWINS.get(model)
    new = twin is None or twin.device != _device(model)
    if twin is None or new:
        twin = _TWINS[model] = _Twin(model)
    twin.copy(model, everything=new or not model.freeze_backbone)
    return twin.network.eval()


class _Twin:
    def __init__(self, model: DeepLabV3Plus) -> None:
        self.device, self.pairs = _device(model), foldable(model)
        self.network = copy.deepcopy(model).requires_grad_(False)
        for conv_name, norm_name in self.pairs:
            conv, norm = self.network.get_submodule(conv_name), self.network.get_submodule(norm_name)
            assert isinstance(conv, nn.Conv2d)
            conv.bias = nn.Parameter(conv.weight.new_empty(conv.out_channels), requires_grad=False)
            parent, _, name = norm_name.rpartition(".")
            rest = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
            setattr(self.network.get_submodule(parent), name, rest)

    @torch.no_grad()
    def copy(self, model: DeepLabV3Plus, everything: bool) -> None:
        """The weights of now: of ``everything``, or of what is not the backbone."""
        ours, theirs, folded = self.network.state_dict(), model.state_dict(), set()
        for conv_name, norm_name in self.pairs:
            folded |= {f"{conv_name}.weight", f"{conv_name}.bias"}
            if everything or not conv_name.startswith("backbone."):
                conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
                assert isinstance(conv, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                mean, variance = norm.running_mean, norm.running_var
                assert mean is not None
                assert variance is not None
                weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, norm.weight,
                                                    norm.bias)
                ours[f"{conv_name}.weight"].copy_(weight)
                ours[f"{conv_name}.bias"].copy_(bias)
        for name in ours.keys() - folded:
            if everything or not name.startswith("backbone."):
                ours[name].copy_(theirs[name])


_TWINS: "weakref.WeakKeyDictionary[DeepLabV3Plus, _Twin]" = weakref.WeakKeyDictionary()
"""A network's copy lives as long as the network."""


def foldable(model: DeepLabV3Plus) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch-norms that can be folded into them.

    In the backbone, whatever timm makes of it, a convolution whose output is read by a batch-norm and by nothing else:
    seen by following an image of the meta device.
    """
    head = [(f"{name}.0", f"{name}.1") for name, module in model.named_modules() if isinstance(module, ConvNormAct)]
    names = {module: f"backbone.{name}" for name, module in model.backbone.named_modules()}
    made: dict[int, nn.Module] = {}
    read: dict[int, nn.Module] = {}
    calls: Counter[nn.Module] = Counter()
    uses = _Uses()

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[module] += 1
        uses.alive.append(output)
        made[id(output)] = module

    def before(module: nn.Module, inputs: Any) -> None:
        calls[module] += 1
        read[id(inputs[0])] = module

    hooks = [module.register_forward_hook(after) for module in names if base_of(type(module)) in CONVOLUTIONS]
    hooks += [module.register_forward_pre_hook(before) for module in names if type(module) in NORMS]
    with uses:
        model.follow(64, 64)
    for hook in hooks:
        hook.remove()
    return head + [(names[conv], names[read[key]]) for key, conv in made.items()
                   if key in read and uses.count[key] == calls[conv] == calls[read[key]] == 1]


class _Uses(TorchFunctionMode):
    """How many operations read a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.alive: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(isinstance(value, Tensor) for value in tree_leaves(result)):  # it is no question for a shape
            given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            self.count.update({id(value) for value in given})
            self.alive += given  # no other tensor may get its id
        return result


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
