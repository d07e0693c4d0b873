"""What a stage must do, and the rates that bound it: both sides of a roofline."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Work:
    """What a stage must do, whoever does it: the numerators of the roofline. Counts, zero where there is none."""

    bytes: int = 0
    """Each input read once and each output written once."""
    exps: int = 0
    flops: int = 0
    """Of products and convolutions; a multiply-add is two."""
    pixels: int = 0
    """Decoded from PNG."""
    dispatches: int = 0
    """Operations that the host starts one after the other."""
    updates: int = 0
    """Moves of a point by UMAP's layout, on one core: a seeded layout has one thread."""

    def times(self, factor: float) -> "Work":
        return Work(**{name: round(value * factor) for name, value in asdict(self).items()})

    def __add__(self, other: "Work") -> "Work":
        return Work(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


BOUNDS = {"bytes": "memory", "exps": "exp", "flops": "FLOP", "pixels": "decode", "dispatches": "host",
          "updates": "host"}
"""Fields of `Work` and `Roofs` -> what a stage that they limit is bound by."""


@dataclass(frozen=True)
class Roofs:
    """Rates per second, measured on a machine or from a data sheet; 0 where not known."""

    threads: int
    """That they were measured with; 0 for a data sheet."""
    dtype: str
    """Of the products that ``flops`` counts."""
    bytes: float = 0.0
    exps: float = 0.0
    flops: float = 0.0
    pixels: float = 0.0
    dispatches: float = 0.0
    updates: float = 0.0

    def least(self, work: Work) -> tuple[float, str]:
        """Seconds that the work takes at least, as if all of it overlapped perfectly, and what bounds it.

        (0, "") for work of which nothing was counted or measured.
        """
        times = {name: getattr(work, name) / getattr(self, name) for name in BOUNDS if getattr(self, name)}
        name = max(times, key=lambda key: times[key], default="")
        return (times[name], BOUNDS[name]) if name and times[name] > 0 else (0.0, "")
