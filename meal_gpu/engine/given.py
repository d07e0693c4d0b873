"""Labels that a data set had before its run began: they are round 0, and people are asked for the rest."""

from torch import Tensor

from ..records import More, Record
from .oracle import Oracle, SimulatedOracle


class GivenOracle:
    """Round 0 from the data set's masks, every other from those who label."""

    def __init__(self, given: SimulatedOracle, others: Oracle) -> None:
        self.given, self.others = given, others

    def ask(self, round_: int, patches: list[Record], more: More) -> tuple[list[Record], list[int]]:
        """See `Oracle`."""
        return self._of(round_).ask(round_, patches, more)

    def label(self, round_: int, ids: Tensor) -> Tensor:
        """See `Oracle`."""
        return self._of(round_).label(round_, ids)

    def _of(self, round_: int) -> Oracle:
        return self.others if round_ else self.given
