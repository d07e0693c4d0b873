"""How the files of a data set are read: what the config says, and what its mask values and colours mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..config import DataConfig

_AS_EVER: dict[str, Any] = {"palette": "auto", "exif": "apply"}
"""Keys that change pixels, at the values under which stores were built before there were any."""


@dataclass(frozen=True, eq=False)
class Rules:
    """One object for whoever reads a file of a data set."""

    to_class: np.ndarray
    """uint8 ``[256]``: mask value -> class index, `VOID` or `INVALID`."""
    names: tuple[str, ...] = ()
    colours: Mapping[int, int] = field(default_factory=dict)
    """``red << 16 | green << 8 | blue`` -> class index or `VOID`, of masks in colour; empty where there are none."""
    shown: Mapping[int, int] = field(default_factory=dict)
    """The same for the colours of a palette: those that the data set is published with, or that reports show."""
    palette: Literal["auto", "index", "colour"] = "auto"
    exif: Literal["apply", "ignore"] = "apply"
    max_pixels: float = 5e8

    @classmethod
    def of(cls, data: DataConfig, to_class: np.ndarray, names: tuple[str, ...], palette: np.ndarray,
           colours: Mapping[int, int]) -> "Rules":
        shown = {int(red) << 16 | int(green) << 8 | int(blue): i for i, (red, green, blue) in enumerate(palette)}
        return cls(to_class, names, colours, {**shown, **colours}, data.palette, data.exif,
                   data.max_megapixels * 1e6)

    def settings(self) -> dict[str, Any]:
        """What a store's settings must name besides ``to_class``: nothing where files are read as they ever were."""
        settings = {key: value for key, default in _AS_EVER.items() if (value := getattr(self, key)) != default}
        if self.colours:
            settings["colours"] = [[colour, index] for colour, index in sorted(self.colours.items())]
        return settings
