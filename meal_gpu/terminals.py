"""What a terminal, or a log, that takes only ASCII or Latin-1 is shown instead of a character that it does not have."""

import codecs
import io
from typing import TextIO

LIKE = {"→": "->", "▶": ">", "–": "-", "—": "-", "−": "-", "·": "*", "…": "...", "×": "x", "±": "+-", "≥": ">=",
        "≤": "<=", "≈": "~", "µ": "u", "μ": "u", "²": "2", "³": "3", "✓": "ok", "✗": "x", "Φ": "Phi", "•": "*",
        "━": "-", "─": "-", "│": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "█": "#"}
"""What reads the same to people; anything else becomes a code, such as ``\\u00e4``."""
_NAME = "meal_gpu.like"


def show_everything(stream: TextIO) -> None:
    """Let a stream write any text: a message that cannot be printed would be a traceback in its place."""
    if isinstance(stream, io.TextIOWrapper):
        codecs.register_error(_NAME, _like)
        stream.reconfigure(errors=_NAME)


def _like(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = []
    for character in error.object[error.start : error.end]:
        code = ord(character)
        # A byte of a file name that is no UTF-8 stands in Python's text as a surrogate.
        byte = f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ""
        shown.append(LIKE.get(character) or byte or character.encode("ascii", "backslashreplace").decode("ascii"))
    return "".join(shown), error.end
