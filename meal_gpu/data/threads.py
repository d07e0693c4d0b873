"""Many files looked at by several threads, with all that is wrong with them in one go."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..errors import InputError
from ..machine.limits import usable_cores
from ..timing import Progress

T = TypeVar("T")
S = TypeVar("S")


def each(files: Sequence[T], look_at: Callable[[T], S], stage: str, progress: Progress, every: int = 1,
         ) -> tuple[list[S], list[InputError]]:
    """What was found in files, in their order and by several threads; and of those that are refused, why."""
    found, problems = list[S](), list[InputError]()

    def tried(file: T) -> S | InputError:
        try:
            return look_at(file)
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(32, usable_cores())) as threads:
        for i, one in enumerate(threads.map(tried, files), start=1):
            if isinstance(one, InputError):
                problems.append(one)
            else:
                found.append(one)
            if i % every == 0 or i == len(files):
                progress(stage, i, len(files))
    return found, problems
