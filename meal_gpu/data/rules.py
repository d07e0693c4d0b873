"""How the files of a data set are read: what the config says, and what its mask values and colours mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..config import DataConfig
from ..grid import Size
from .classes import VOID
from .imagefile import Reading

_AS_EVER: dict[str, Any] = {"palette": "auto", "exif": "apply", "bands": None, "resize": "stretch",
                            "tile": None}
"""Keys that change pixels, at the values under which stores were built before there were any."""


@dataclass(frozen=True, eq=False)
class Rules:
    """One object for whoever reads a file of a data set."""

    to_class: np.ndarray
    """uint8 ``[256]``: mask value -> class index, `VOID` or `INVALID`."""
    class_names: tuple[str, ...] = ()
    colours: Mapping[int, int] = field(default_factory=dict)
    """``red << 16 | green << 8 | blue`` -> class index or `VOID`, of masks in colour; empty where there are none."""
    shown: Mapping[int, int] = field(default_factory=dict)
    """The same for the colours of a palette: those that the data set is published with, or that reports show."""
    palette: Literal["auto", "index", "colour"] = "auto"
    resize: Literal["stretch", "fit"] = "stretch"
    tile: Size | None = None
    reading: Reading = field(default_factory=Reading)
    """Of images."""

    @classmethod
    def of(cls, data: DataConfig, to_class: np.ndarray, names: tuple[str, ...], palette: np.ndarray,
           colours: Mapping[int, int]) -> "Rules":
        shown = {int(red) << 16 | int(green) << 8 | int(blue): i for i, (red, green, blue) in enumerate(palette)}
        return cls(to_class, names, colours, {**shown, **colours}, data.palette, data.resize, data.tile,
                   Reading(data.exif, data.max_megapixels * 1e6, data.bands))

    def table(self) -> dict[str, Any]:
        """What mask values and colours mean, for people and their tools: goes out with every query."""
        def values(index: int) -> list[int]:
            return [int(value) for value in np.flatnonzero(self.to_class == index)]

        def colours(index: int, of: Mapping[int, int]) -> list[list[int]]:
            return [[colour >> 16, colour >> 8 & 255, colour & 255] for colour, i in of.items() if i == index]

        return {
            "classes": [{"name": name, "values": values(i), "colours": colours(i, self.shown)}
                        for i, name in enumerate(self.class_names)],
            "void": {"values": values(VOID), "colours": colours(VOID, self.colours)},
        }

    def settings(self) -> dict[str, Any]:
        """What a store's settings must name besides ``to_class``: nothing where files are read as they ever were."""
        now: dict[str, Any] = {"palette": self.palette, "exif": self.reading.exif, "bands": self.reading.bands,
               "resize": self.resize, "tile": self.tile}
        settings = {key: value for key, value in now.items() if value != _AS_EVER[key]}
        if self.reading.bands:
            settings["bands"] = list(self.reading.bands)
        if self.tile:
            settings["tile"] = list(self.tile)
        if self.colours:
            settings["colours"] = [[colour, index] for colour, index in sorted(self.colours.items())]
        return settings
