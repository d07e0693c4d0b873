"""Somebody's network in the place of ours (``model.factory``): whatever gives logits, and what offers more."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import InputError, did_you_mean, first_line
from ..grid import Grid, Size
from .interface import Network, Shape, Upsampling
from .reading import checked_outputs, in_eval, layers_with_maps, logits_in, maps_in, said
from .windows import Windows

LAYERS = ("encoder", "backbone", "features")
"""Modules of a network whose maps are embedded where ``model.feature_layer`` names none."""


@runtime_checkable
class FeatureNetwork(Protocol):
    """A module whose network is taken in two parts, so that the first is computed once where it is frozen.

    Without these three methods a module is called as a whole, in every epoch, which always works.
    """

    def features(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised RGB ``[B, 3, H, W]`` → one map or two, ``[B, channels, h, w]`` each, of any stride.

        Means over patches of the last one are embedded. With ``model.freeze_backbone: true`` they may depend on nothing
        that `trainable` names: they are computed once, in eval mode, and kept.
        """

    def logits(self, *maps: Tensor) -> Tensor:
        """These maps → logits ``[B, classes, h, w]`` of any stride."""

    def trainable(self) -> Iterable[nn.Parameter]:
        """What training changes; everything else stays as the factory made it."""


class OwnNetwork(Network):
    """A module of somebody's as the engine asks for it.

    Of a module that gives logits alone, `features` is the whole of it: the logits, and the maps of a layer inside.

    Raises `InputError`, in one sentence, for what cannot be used: here, and in `check`.
    """

    def __init__(self, module: Any, classes: int, config: ModelConfig) -> None:
        super().__init__()
        self.name = f"model.factory '{config.factory}'"
        if not isinstance(module, nn.Module):
            raise InputError(f"{self.name} returns {said(module)}: return a torch.nn.Module.")
        self.module, self.classes, self.align_corners = module, classes, config.align_corners
        self.freeze_backbone = config.freeze_backbone
        self.staged = isinstance(module, FeatureNetwork)
        if self.freeze_backbone and not self.staged:
            raise InputError(f"model.freeze_backbone is true, and what {self.name} returns has no methods features, "
                             "logits and trainable, which say what is to be frozen. Write them (see "
                             "docs/your-network.md), or use model.freeze_backbone: false.")
        self._constant = self._frozen_names() if self.staged else frozenset()
        self._shapes: dict[Size, tuple[Shape, Shape, Size]] = {}
        self._caught: Any = None
        self.named = config.feature_layer is not None
        self.layer = None if self.staged else self._layer(config.feature_layer)
        if self.staged and config.feature_layer is not None:
            raise InputError(f"model.feature_layer is '{config.feature_layer}', and what {self.name} returns says "
                             "itself what its features are. Leave it out.")
        if self.layer is not None:
            module.get_submodule(self.layer).register_forward_hook(self._catch)

    def _layer(self, name: str | None) -> str | None:
        names = dict(self.module.named_modules())
        if name is not None and name not in names:
            raise InputError(f"model.feature_layer is '{name}', which is no module of {self.name}."
                             f"{did_you_mean(name, names)}")
        return name or next((known for known in LAYERS if known in names), None)

    def _frozen_names(self) -> frozenset[str]:
        """Entries of the state that no training changes, whose modules therefore stay in eval mode."""
        trained = {id(parameter) for parameter in self.module.trainable()}  # type: ignore[operator]
        if not trained:
            raise InputError(f"{self.name}: trainable() of what it returns names no parameter.")
        for parameter in self.module.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        if not self.freeze_backbone:
            return frozenset()
        self._fixed = [module for module in self.module.modules() if any(True for _ in module.state_dict())
                       and not any(parameter.requires_grad for parameter in module.parameters())]
        inside = {id(value) for module in self._fixed for value in [*module.parameters(), *module.buffers()]}
        inside |= {id(parameter) for parameter in self.module.parameters() if not parameter.requires_grad}
        return frozenset(name for name, value in [*self.module.named_parameters(), *self.module.named_buffers()]
                         if id(value) in inside)

    def _catch(self, module: nn.Module, given: Any, made: Any) -> None:
        self._caught = maps_in(made)

    # The state is the module's own, so that whoever made it can load it.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> "OwnNetwork":
        """What is frozen stays in eval mode."""
        super().train(mode)
        for module in self._fixed if self.freeze_backbone else ():
            module.eval()
        return self

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        n = len(pixels)
        if self.training and n == 1 and not self.freeze_backbone:
            pixels = torch.cat([pixels, pixels])  # batch-norm of a pooled map needs two values
        if self.staged:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
                made = self.module.features(pixels)  # type: ignore[operator]
            maps = made if isinstance(made, (tuple, list)) else (made,)
            # Of one map the other is empty: there is nothing to keep of it.
            low, high = maps if len(maps) == 2 else (maps[0][:, :0, :1, :1], maps[0])
        else:
            low = self._as_logits(self.module(pixels))
            if self.layer is not None and self._caught is None:
                if self.named:
                    raise InputError(f"model.feature_layer '{self.layer}' is not used by {self.name}. Name another "
                                     "layer.")
                self.layer = None  # its name was a guess
            high = low if self._caught is None else self._caught
            self._caught = None
        return low[:n], high[:n]

    def logits(self, low: Tensor, high: Tensor, up: Upsampling | None = None) -> Tensor:
        if not self.staged:
            return low
        maps = (low, high) if low.shape[1] else (high,)
        return self._as_logits(self.module.logits(*maps))  # type: ignore[operator]

    def window_logits(self, low: Tensor, high: Tensor, at: Windows) -> Tensor:
        """Of the whole frame: where a module looks at a patch it needs to see, only it knows."""
        return self.logits(low, high)

    def _as_logits(self, made: Any) -> Tensor:
        logits = logits_in(made)
        if logits is None:
            raise InputError(f"{self.name} gives {said(made)}: give logits [B, classes, h, w], a dict with 'out' or "
                             "'logits', or a tuple that begins with them.")
        return logits.float() if logits.dtype == torch.float64 else logits

    def _shapes_of(self, height: int, width: int) -> tuple[Shape, Shape, Size]:
        key = height, width
        if key not in self._shapes:
            device = next(self.module.parameters()).device
            with in_eval(self), torch.no_grad():
                low, high = self.features(torch.zeros(1, 3, height, width, device=device))
                logits = self.logits(low, high)
            (_, a, b, c), (_, d, e, f) = low.shape, high.shape
            self._shapes[key] = (a, b, c), (d, e, f), (logits.shape[2], logits.shape[3])
        return self._shapes[key]

    def map_shapes(self, height: int, width: int) -> tuple[Shape, Shape]:
        low, high, _ = self._shapes_of(height, width)
        return low, high

    def logits_size(self, height: int, width: int) -> Size:
        return self._shapes_of(height, width)[2]

    def windows(self, grid: Grid, device: torch.device) -> Windows:
        return Windows.whole(grid, self.logits_size(grid.height, grid.width), self.align_corners, device)

    def constant(self, name: str) -> bool:
        return name in self._constant

    def begin_as(self, pretrained: Network) -> None:
        """What is frozen is the same in all trainings, should the factory draw it at random."""
        assert isinstance(pretrained, OwnNetwork)
        state = pretrained.state_dict()
        self.load_state_dict({name: state[name] for name in self._constant if name in state}, strict=False)
        self._shapes = pretrained._shapes

    def check_features(self, why: str) -> None:
        if not self.staged and self.layer is None:
            first = torch.zeros(1, 3, 64, 64, device=next(self.module.parameters()).device)
            with in_eval(self):
                found = ", ".join(layers_with_maps(self.module, first)[:24]) or "none with maps"
            raise InputError(f"{why}: name the layer of {self.name} that gives maps by model.feature_layer; there are "
                             f"{found}.")

    def check(self, height: int, width: int) -> str:
        """Try the network on two frames; what there is to say about it, in a line.

        Raises `InputError`: it fails, changes its input, answers elsewhere, gives other channels than there are
        classes, probabilities, numbers that are not finite, or no maps.
        """
        device = next(self.module.parameters()).device
        frames = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
        given, known = frames.clone(), True
        try:
            with in_eval(self), torch.no_grad():
                low, high = self.features(given)
                logits = self.logits(low, high)
            if self.freeze_backbone:
                with in_eval(self), torch.enable_grad():
                    made = self.module.features(given)  # type: ignore[operator]
                    known = not any(one.requires_grad for one in (made if isinstance(made, (tuple, list)) else [made]))
        except InputError:
            raise
        except Exception as error:  # whatever a stranger's code raises
            raise InputError(f"{self.name} failed on a batch {list(frames.shape)}: {type(error).__name__}: "
                             f"{first_line(error)}.") from error
        if not torch.equal(given, frames):
            raise InputError(f"{self.name} changes its input in place: let its first operation make a new tensor.")
        if not known:
            raise InputError(f"model.freeze_backbone is true, and the features of {self.name} depend on what "
                             "trainable() names. Leave that out there, or use model.freeze_backbone: false.")
        for what, value in (("logits", logits), ("features", high)):
            if value.device != device:
                raise InputError(f"{self.name} is asked on {device} and its {what} are on {value.device}: let it "
                                 "answer where it is asked.")
        checked_outputs(logits, 2, "logits", None, self.name)
        if logits.shape[1] != self.classes:
            raise InputError(f"{self.name} gives {logits.shape[1]} channels, and the data set has {self.classes} "
                             "classes: it is called with their number, make as many.")
        if not bool(logits.isfinite().all()):
            raise InputError(f"{self.name} gives numbers that are not finite on a frame of noise: NaN or infinite. "
                             "Look at its weights.")
        if not isinstance(high, Tensor) or high.ndim != 4:
            raise InputError(f"model.feature_layer '{self.layer}' gives {said(high)}: features are maps [B, channels, "
                             "h, w]. Name another layer.")
        if self.staged:
            kept = "computed once and kept" if self.freeze_backbone else "computed in every pass"
            return f"{self.name}: features {list(high.shape[1:])} are {kept}; logits are of whole frames"
        maps = f"layer '{self.layer}' is embedded" if self.layer else "no layer is embedded"
        return f"{self.name}: gives logits {list(logits.shape[1:])} alone: nothing is kept of a frame; {maps}"
