"""How the command line ends, whatever happens in it, and how what is logged looks.

Exit codes: 2 bad input or configuration (one message, no traceback), 130 interrupted by Ctrl-C, 143 by SIGTERM; a
command's own: 1 a check failed, 3 waiting for labels.
"""

import logging
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console, ConsoleRenderable
from rich.logging import RichHandler
from rich.markup import escape
from rich.text import Text

from .errors import InputError
from .paths import settle_home
from .terminals import show_everything


class Terminated(BaseException):
    """SIGTERM, as a batch system or a container sends it: taken as Ctrl-C, with an exit code of its own.

    No KeyboardInterrupt, which Typer would turn into its own message and code.
    """


class Interrupted(Exception):  # noqa: N818
    """Ctrl-C, with what the user should know. Typer would turn a KeyboardInterrupt into its own message and code."""


class Lines(RichHandler):
    """Log lines on a terminal; warnings stand out."""

    def render_message(self, record: logging.LogRecord, message: str) -> ConsoleRenderable:
        shown = super().render_message(record, message)
        if record.levelno >= logging.WARNING and isinstance(shown, Text):
            shown.stylize("bold red")
        return shown


def end_well(app: Callable[[], object], errors: Console) -> None:
    """Call the command line. What a user is to read goes to ``errors``; the process ends with its exit code."""
    # Where no terminal is, a line stays a line, for whoever searches it.
    handler = Lines(console=errors, show_time=False, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True,
                        handlers=[handler if errors.is_terminal else logging.StreamHandler()])
    logging.getLogger("meal_gpu").setLevel(logging.INFO)
    logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of the classifier's weights, which are not used
    for stream in (sys.stdout, sys.stderr):
        show_everything(stream)
    settle_home()
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except InputError as error:
        errors.print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except UnicodeEncodeError as error:
        if error.encoding != sys.getfilesystemencoding() or error.encoding == "utf-8":
            raise
        errors.print(f"[bold red]error[/] {escape(repr(error.object))} is no name of a file here: this locale has "
                     f"{error.encoding} alone. Set LC_ALL=C.UTF-8.", highlight=False, soft_wrap=True)
        sys.exit(2)
    except Interrupted as stop:
        _stopped(stop, errors)
    except Terminated as stop:  # in the middle of something that has nothing to keep
        _stopped(stop, errors)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: object) -> None:
    """The first SIGTERM interrupts; what follows while the run is being put away is ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _stopped(stop: BaseException, errors: Console) -> NoReturn:
    terminated = isinstance(stop, Terminated) or isinstance(stop.__cause__, Terminated)
    what = "" if isinstance(stop, Terminated) else str(stop)
    errors.print(f"{'Terminated' if terminated else 'Interrupted'}.{escape(what)}", highlight=False, soft_wrap=True)
    sys.exit(143 if terminated else 130)
