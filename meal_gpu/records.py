"""What a run leaves behind: a line per finished round, which is also all that is needed to go on."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import append_durably, write_atomic

Record = dict[str, Any]
"""One line of ``rounds.jsonl``: see docs/run-directory.md."""


def read_rounds(directory: Path) -> list[Record]:
    """The finished rounds of a seed. A last line without its newline was being written when the run was killed."""
    file = directory / "rounds.jsonl"
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]
    records: list[Record] = []
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
            rounds.append(records[-1]["round"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged in line {number} ({error}). Delete its lines from that one on; "
                             "--resume then repeats those rounds.") from None
    if rounds != list(range(len(rounds))):
        raise InputError(f"{file} holds the rounds {rounds}, not 0, 1, 2, ...: restore it, or start a new run.")
    return records


def drop_unfinished_line(directory: Path) -> None:
    """Cut off what was being written when the run was killed, so that the next line starts at its beginning."""
    file = directory / "rounds.jsonl"
    if file.exists():
        whole = file.read_bytes().rfind(b"\n") + 1
        if whole < file.stat().st_size:
            os.truncate(file, whole)


def append_round(directory: Path, record: Record) -> None:
    """Make a finished round durable."""
    append_durably(directory / "rounds.jsonl", json.dumps(record, allow_nan=False).encode() + b"\n")


def update_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Add arrays to an ``.npz`` file, or replace them, atomically."""
    held: dict[str, np.ndarray] = {}
    if file.is_file():
        with np.load(file) as old:
            held = {name: old[name] for name in old.files}
    held.update(arrays)
    write_atomic(file, lambda stream: np.savez_compressed(stream, **held))  # type: ignore[arg-type]
