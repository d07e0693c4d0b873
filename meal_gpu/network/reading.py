"""What somebody's network gives, told apart without guessing: logits, probabilities, maps; its mode is left alone."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import MAX_CLASSES

Outputs = Literal["logits", "probabilities"]


@contextlib.contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """A network in eval mode; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def checked_outputs(made: Tensor, n: int, outputs: Outputs, classes: int | None, who: str) -> Tensor:
    """Outputs of n images, float ``[n, C, h, w]``; raises `InputError` for what is none.

    ``classes`` are those of the outputs before, None for the first: whether these are logits or probabilities is looked
    at there alone, since it waits for the device.
    """
    if made.ndim != 4 or len(made) != n or not made.is_floating_point() or 0 in made.shape:
        raise InputError(f"{who} gives {said(made)} for {n} {'image' if n == 1 else 'images'}: {outputs} are "
                         f"floating-point numbers [{n}, classes, h, w].")
    found = made.shape[1]
    if found == 1:
        raise InputError(f"{who} gives 1 channel, as for a sigmoid: give two, for example by lambda x: "
                         "torch.cat([torch.zeros_like(y := network(x)), y], 1) around a network that gives logits.")
    if found > MAX_CLASSES:
        raise InputError(f"{who} gives {found} channels: 2 to {MAX_CLASSES} classes are supported.")
    if classes not in (None, found):
        raise InputError(f"{who} gives {found} channels, and {classes} before: every image needs the same classes.")
    if classes is None and made.device.type != "meta":
        first = made[:1].float()
        sums = first.sum(1)
        are = bool(((first >= 0).all() & ((sums - 1).abs() < 1e-2).all()).item())
        if outputs == "logits" and are:
            raise InputError(f"{who} gives numbers that are not negative and add up to 1 over the classes: these are "
                             "probabilities. Give outputs='probabilities', or leave out the softmax.")
        if outputs == "probabilities" and not are and bool(first.isfinite().all().item()):
            raise InputError(f"outputs is 'probabilities', and those of {who[0].lower()}{who[1:]} add up to "
                             f"{float(sums.min()):.3g} … {float(sums.max()):.3g} over the classes, the least being "
                             f"{float(first.min()):.3g}: give outputs='logits', or end in a softmax.")
    return made if made.dtype != torch.float64 else made.float()


def logits_in(made: Any) -> Tensor | None:
    """The logits in what a network returns; None where they cannot be told."""
    if isinstance(made, Tensor):
        return made
    if isinstance(made, Mapping):  # torchvision's and transformers' results
        found = made.get("logits", made.get("out"))
    elif hasattr(made, "logits"):
        found = made.logits
    elif isinstance(made, (tuple, list)) and made:
        found = made[0]
    else:
        found = None
    return found if isinstance(found, Tensor) else None


def layers_with_maps(network: nn.Module, batch: Tensor) -> list[str]:
    """Names of modules of a network that give maps ``[B, C, h, w]``, with their shapes, in the order of their end."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, given: Any, made: Any) -> None:
            if isinstance(made, Tensor) and made.ndim == 4 and min(made.shape[2:]) > 1:
                found.append(f"{name} {list(made.shape[1:])}")

        return note

    hooks = [module.register_forward_hook(watch(name)) for name, module in network.named_modules()
             if name and name.count(".") < 2]
    try:
        with torch.no_grad():
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def said(made: Any) -> str:
    if isinstance(made, Tensor):
        return f"{made.dtype} {list(made.shape)}".replace("torch.", "")
    if isinstance(made, Mapping):
        return f"a dict with {', '.join(map(repr, list(made)[:6]))}"
    if isinstance(made, (tuple, list)):
        return f"a {type(made).__name__} of {len(made)}"
    return "nothing" if made is None else f"a {type(made).__name__}"


def maps_in(made: Any) -> Any:
    """The maps in what a layer returns: of a pyramid the deepest, of torchvision's backbones those that are used."""
    if isinstance(made, (tuple, list)) and made:
        return made[-1]
    if isinstance(made, Mapping) and made:
        return made.get("out", list(made.values())[-1])
    return made
