"""The table of classes that goes out with a query, and comes back beside the labels where the tool writes one.

Out goes ``classes.json``. Back may come, beside the masks, ``classes.json`` as it went out, ``classes.txt`` (a name per
line, the first is id 0: Label Studio and YOLO tools) or ``labelmap.txt`` (CVAT: ``name:red,green,blue:parts:actions``).
Masks whose palette holds the classes' colours carry their table themselves: `data.maskfile` reads it.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from ..data.classes import INVALID, VOID
from ..data.rules import Rules
from ..errors import InputError
from ..files import write_atomic

FILE = "classes.json"
_VOID = "void"


def write_table(folder: Path, rules: Rules) -> None:
    write_atomic(folder / FILE, json.dumps(rules.table(), indent=1).encode())


def check_table(folder: Path, rules: Rules) -> None:
    """Compare the tables in a query's folder and beside its masks with the run's own.

    Raises `InputError` where one gives an id, or a colour, to another class, naming both.
    """
    _check(folder / FILE, _json, rules)
    check_beside(folder / "masks", rules)


def check_beside(masks: Path, rules: Rules) -> None:
    """The same of the tables beside masks."""
    for name, read in ((FILE, _json), ("classes.txt", _lines), ("labelmap.txt", _labelmap)):
        _check(masks / name, read, rules)


Said = Iterator[tuple[str, str, int]]
"""An id or a colour in words, the class that a file gives it to, and what it is to the run: class index or `VOID`."""


def _check(file: Path, read: Callable[[Path, Rules], Said], rules: Rules) -> None:
    if not file.is_file():
        return
    try:
        for what, name, index in read(file, rules):
            _compare(file, what, name, index, rules)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{file} is no table of classes ({error!r}). Write it again, or remove it.") from None


def _json(file: Path, rules: Rules) -> Said:
    held = json.loads(file.read_bytes())
    for entry in [*held["classes"], {"name": _VOID, **held.get("void", {})}]:
        for value in entry.get("values", []):
            yield f"the id {int(value)}", str(entry["name"]), int(rules.to_class[int(value)])
        for red, green, blue in entry.get("colours", []):
            yield from _colour(int(red), int(green), int(blue), str(entry["name"]), rules)


def _lines(file: Path, rules: Rules) -> Said:
    for number, line in enumerate(file.read_text("utf-8-sig").strip().splitlines()):
        yield f"the id {number}", line.strip(), int(rules.to_class[number])


def _labelmap(file: Path, rules: Rules) -> Said:
    lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    for line in filter(None, lines):
        if not line.startswith("#"):
            name, colour, *_ = line.split(":")
            red, green, blue = map(int, colour.split(","))
            yield from _colour(red, green, blue, name.strip(), rules)


def _colour(red: int, green: int, blue: int, name: str, rules: Rules) -> Said:
    """Colours that the run does not know are a matter of the masks that hold them."""
    code = red << 16 | green << 8 | blue
    if code in rules.colours or code in rules.shown:
        yield f"the colour [{red}, {green}, {blue}]", name, rules.colours.get(code, rules.shown.get(code, VOID))


def _compare(file: Path, what: str, name: str, index: int, rules: Rules) -> None:
    names = rules.class_names
    if index < len(names) and names[index] == name:
        return
    if index in (VOID, INVALID) and name not in names:  # whatever else a tool calls what is not labelled
        return
    run = f"'{names[index]}'" if index < len(names) else _VOID if index == VOID else "no class"
    raise InputError(f"{file} gives {what} to '{name}', and the classes of this run give it to {run}: the labels were "
                     f"made with another table. Export them by the table in {FILE} beside the query, or remove {file} "
                     "if the masks are right all the same.")
