"""What is being measured, and each part as soon as it has been."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.status import Status

if TYPE_CHECKING:
    from ..result import Stage


class Doing:
    """Says what is being done, beside the spinner once it turns."""

    status: Status | None = None

    def __call__(self, text: str) -> None:
        if self.status is not None:
            self.status.update(text)

    def done(self, stage: "Stage") -> None:
        """A line for what has been measured: the table comes when all is, minutes later."""
        from .table import line  # with what results need, which takes a second to import

        if self.status is not None:
            self.status.console.print(escape(line(stage)), highlight=False, soft_wrap=True)
