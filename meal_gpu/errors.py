"""The exceptions that a user is meant to read: what was given, what is allowed, what to do."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class InputError(Exception):
    """Bad input or configuration; the command line prints the message alone and exits with code 2."""


class LabelsMissingError(Exception):
    """People have not labelled all of a query yet; the run stops and goes on with ``--resume``."""

    def __init__(self, directory: Path, missing: int, wanted: int, beside: Sequence[str] = ()) -> None:
        self.directory, self.missing, self.wanted = directory, missing, wanted
        self.beside = tuple(beside)
        """What lies there and was not asked for, in words."""
        told = f". Not asked for, and there: {and_more(beside)}" if beside else ""
        super().__init__(f"{missing} of {wanted} masks are missing in {directory}{told}")


def and_more(names: Sequence[str], most: int = 5) -> str:
    """``a, b and 3 more``: the first names, and how many there are beside."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def and_so_on(names: Sequence[str]) -> str:
    """``a, b, c, d, e, ...``, where the number is said elsewhere."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def all_of(problems: Sequence[InputError], total: int, what: str) -> InputError:
    """One error for all bad ones of ``total``, so that they can be repaired in one go."""
    said = list(dict.fromkeys(map(str, problems)))
    if len(said) == 1:
        return InputError(said[0])
    listed = [f"  {line}" for line in said[:10]]
    more = [f"  and {len(said) - 10} more."] if len(said) > 10 else []
    return InputError("\n".join([f"{len(said)} of {total} {what} cannot be used:", *listed, *more]))


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``allowed``, or an empty string."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def first_line(error: BaseException) -> str:
    """What an exception of someone else's says, short enough for a reason in brackets."""
    text = str(error).strip()
    return text.splitlines()[0][:160].rstrip(". ") if text else type(error).__name__
