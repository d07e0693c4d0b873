"""Somebody else's network as a pass over a pool needs it: logits and feature maps, in its own dtype, left as it was."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, did_you_mean, first_line
from ..network.reading import Outputs, checked_outputs, in_eval, logits_in, maps_in, said

Layer = str | int | Callable[[Tensor], Tensor] | None
"""Where feature maps come from: the name of a module inside the network, the number of one of its outputs, or a
function of its input (such as a backbone of timm)."""


class Seen(NamedTuple):
    """What a network makes of a batch."""

    logits: Tensor
    """``[B, C, h, w]``"""
    maps: Tensor | None
    """``[B, F, h', w']``, where features were asked for."""


class Observed:
    """A module, or any callable, that maps images to logits ``[B, C, h, w]`` at any stride.

    Parameters
    ----------
    network
        Gives logits alone, a dict with ``out`` or ``logits``, something with ``.logits``, or a tuple that begins with
        them.
    features
        See `Layer`.
    outputs
        What it gives: ``logits``, or ``probabilities`` that add up to 1.
    device
        Of its inputs; by default where its parameters are.

    Raises
    ------
    InputError
        Where it cannot be used, in one sentence: at once, or when a batch goes through it.
    """

    def __init__(self, network: Callable[..., Any], features: Layer, outputs: Outputs,
                 device: str | torch.device | None = None) -> None:
        if not callable(network):
            raise InputError(f"network is a {type(network).__name__}: give a torch.nn.Module or a function that maps a "
                             "batch of images to logits [B, classes, h, w].")
        self.network, self.features, self.outputs = network, features, outputs
        self.module = network if isinstance(network, nn.Module) else None
        parameters = list(self.module.parameters()) if self.module is not None else []
        devices = sorted({str(value.device) for value in parameters})
        if len(devices) > 1:
            raise InputError(f"The network's parameters are on {' and '.join(devices)}: move all to one device.")
        self.device = torch.device(devices[0] if devices else device or "cpu")
        if device is not None and torch.device(device).type != self.device.type:
            raise InputError(f"device is '{device}' and the network is on {devices[0]}: move it there, or leave out "
                             "device.")
        floats = [value for value in parameters if value.is_floating_point()]
        self.dtype = floats[0].dtype if floats else torch.float32
        last = any(value.ndim == 4 and not value.is_contiguous() for value in floats)
        self.format = torch.channels_last if last else torch.contiguous_format
        self.layer: nn.Module | None = None
        if isinstance(features, str):
            self.layer = self._find(features)
        self._caught: Any = None
        self.classes: int | None = None

    def _find(self, name: str) -> nn.Module:
        if self.module is None:
            raise InputError(f"features is '{name}', the name of a layer, and the network is a function: give a "
                             "function of the same images that returns maps, or the number of an output.")
        names = dict(self.module.named_modules())
        if name not in names:
            raise InputError(f"features is '{name}', which is no module of the network.{did_you_mean(name, names)} "
                             "`network.named_modules()` lists them.")
        return names[name]

    @contextlib.contextmanager
    def in_use(self) -> Iterator["Observed"]:
        """In eval mode and watched; afterwards every module is in the mode that it was in."""
        hook = self.layer.register_forward_hook(self._catch) if self.layer is not None else None
        try:
            with in_eval(self.module) if self.module is not None else contextlib.nullcontext():
                yield self
        finally:
            if hook is not None:
                hook.remove()
            self._caught = None

    def _catch(self, module: nn.Module, given: Any, made: Any) -> None:
        self._caught = made

    def given(self, batch: Tensor) -> Tensor:
        """A batch as the network takes it: on its device, in its dtype and memory format."""
        last = self.format == torch.channels_last and batch.ndim == 4
        return batch.to(self.device, self.dtype, memory_format=torch.channels_last if last else torch.contiguous_format)

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Seen:
        """Logits and maps of a batch ``[B, …]`` on the network's device and in its dtype; within `in_use`."""
        version = batch._version
        try:
            made = self.network(batch)
            own = self.features(batch) if callable(self.features) else None
        except InputError:
            raise
        except torch.OutOfMemoryError as error:
            raise InputError(f"Memory ran out with {len(batch)} images at a time ({first_line(error)}): give a smaller "
                             "batch_size.") from error
        except Exception as error:  # whatever a stranger's code raises
            if "more than 1 value per channel" in str(error):
                raise InputError("The network has a batch-norm in training mode, which fails on a batch of one: give "
                                 "the module itself, or call eval() on what your function calls.") from error
            raise InputError(f"The network failed on a batch {list(batch.shape)} of {batch.dtype} on {batch.device}: "
                             f"{type(error).__name__}: {first_line(error)}.") from error
        if batch._version != version:
            raise InputError("The network changes its input in place (for example by an activation with inplace=True "
                             "as its first layer), and others read it too: let its first operation make a new tensor.")
        seen = Seen(self._logits(made, len(batch)), self._maps(made, own, len(batch)))
        self._caught = None
        return seen

    def _logits(self, made: Any, n: int) -> Tensor:
        logits = logits_in(made)
        if logits is None:
            raise InputError(f"The network gives {said(made)}: give logits [B, classes, h, w], a dict with 'out' or "
                             "'logits', or wrap it in a function that picks them.")
        checked = checked_outputs(logits, n, self.outputs, self.classes, "The network")
        if checked.device.type != self.device.type:
            raise InputError(f"The network's inputs are on {self.device} and its outputs on {logits.device}: give "
                             f"device='{logits.device}' or let it answer where it is asked.")
        self.classes = checked.shape[1]
        return checked

    def _maps(self, made: Any, own: Any, n: int) -> Tensor | None:
        if self.features is None:
            return None
        if isinstance(self.features, int):
            if not isinstance(made, (tuple, list)) or not -len(made) <= self.features < len(made):
                raise InputError(f"features is {self.features}, the number of an output, and the network gives "
                                 f"{said(made)}.")
            maps, what = made[self.features], f"Output {self.features}"
        elif self.layer is not None:
            maps, what = self._caught, f"Layer '{self.features}'"
        else:
            maps, what = own, "The function given as features"
        maps = maps_in(maps)
        if maps is None:
            raise InputError(f"{what} was not used by the network: features need one that is.")
        if not isinstance(maps, Tensor) or maps.ndim != 4 or len(maps) != n or 0 in maps.shape:
            raise InputError(f"{what} gives {said(maps)}: features are maps [{n}, channels, h, w] for {n} images.")
        return maps
