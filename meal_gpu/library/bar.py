"""A bar that a terminal and a notebook show."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tqdm.auto import tqdm

from ..timing import Progress


def shown(progress: bool | Progress) -> AbstractContextManager[Progress]:
    if callable(progress):
        return nullcontext(progress)
    return _Bar(disable=not progress)


class _Bar:
    """A bar per stage, once it has taken a second."""

    def __init__(self, disable: bool) -> None:
        self.disable, self.stage = disable, ""
        self.bar: Any = None

    def __enter__(self) -> Progress:
        return self.show

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            if self.bar is not None:
                self.bar.close()
            self.stage, self.bar = stage, tqdm(total=total, desc=stage, disable=self.disable, delay=1, leave=False)
        self.bar.update(done - self.bar.n)
