"""The pool's images and the validation split, as the network sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.frames import Frames, HeldFrames
from ..machine.backend import Backend
from ..network.features import Features
from ..network.interface import Network


@dataclass
class Split:
    """Images, where they are kept, and what a frozen backbone makes of them."""

    names: Sequence[str]
    """One per image."""
    frames: Frames
    frozen: Features | None
    """Where the backbone is frozen: the same for every network of the experiment."""
    backend: Backend

    def features(self, model: Network) -> Features:
        """Of all frames, for a network of the experiment."""
        return self.frozen or Features.of(self.frames, model, self.backend, cached=False)


@dataclass
class Validation(Split):
    """A split whose masks are known."""

    masks: HeldFrames
