"""The one exception a user is meant to read: what was given, what is allowed, what to do."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Bad input or configuration; the command line prints the message alone and exits with code 2."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``allowed``, or an empty string."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def first_line(error: BaseException) -> str:
    """What an exception of someone else's says, short enough for a reason in brackets."""
    text = str(error).strip()
    return text.splitlines()[0][:160].rstrip(". ") if text else type(error).__name__
