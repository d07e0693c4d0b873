"""What a run leaves behind: its config, and a line per finished round, which is also all that is needed to go on.

Both are sealed: the first line of ``config.yaml`` holds a name drawn for the run and the digest of the config, and
every line of ``rounds.jsonl`` ends with a checksum of itself, of the lines before it, and of that name. So a line that
was edited is noticed, and so is one of another run or seed. Runs of before there were seals are read as well.
"""

import functools
import json
import logging
import os
import secrets
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .config import Config
from .configfile import parse_yaml
from .errors import InputError
from .files import (
    LINES,
    Seal,
    append_durably,
    open_object,
    open_own,
    parse_json,
    read_arrays,
    read_own,
    read_seal,
    seal_object,
    write_atomic,
)

_log = logging.getLogger("meal_gpu")

Record = dict[str, Any]
"""One line of ``rounds.jsonl``: see docs/run-directory.md."""
More = Callable[[int, list[int], list[int]], list[Record]]
"""How many, all patches that a round has asked for, and those of them that are skipped → other patches, at most so
many."""
CONFIG = "config.yaml"
ROUNDS = "rounds.jsonl"
ENVIRONMENT = "environment.json"
GALLERY, STOP_SET = "gallery/round-{:02d}.npz", "stop-set/predictions-{:02d}.npz"
"""Below a seed's directory, by round: what is drawn of the patches that it reveals, and what its network says of the
stop set. Nothing needs them to go on."""
_SINCE = ("threads", "tracking")
"""Keys beside the sections that came later: runs of before ran with what is their default."""
ARRAYS_BYTES = 2**32
"""Of an ``.npz`` file of a run, unpacked, where nothing tells how much belongs there."""


def accepting(directory: Path) -> str:
    """How a run that was edited is taken as it is."""
    return f"meal-gpu run --resume {shlex.quote(str(directory))} --accept-changes"


# --- the config -------------------------------------------------------------------------------------------------------


def write_config(directory: Path, config: Config) -> None:
    """Make a directory a run's, under a name that is drawn for it."""
    text = config.dump()
    write_atomic(directory / CONFIG, Seal.of(text, secrets.token_hex(8)).written(text))


def read_config(directory: Path, overrides: list[str] | None = None) -> Config:
    """The config of a run. Raises `InputError` where it is not the one that the run was begun with."""
    file = directory / CONFIG
    seal, text = _config(file)
    if seal is None:
        if _were_sealed(directory):
            raise InputError(f"{file} has lost its first line, which sealed it: restore the file, or take it as it is: "
                             f"{accepting(directory)}")
        _say_unsealed(directory)
    elif Seal.of(text.decode("utf-8", "replace"), seal.name).digest != seal.digest:
        raise InputError(f"{file} is not what this run was begun with: it was edited, cut off or damaged since. "
                         f"Restore it, or take it as it is: {accepting(directory)}")
    config = _parsed(file, text, overrides)
    mine = {f"seed-{seed}" for seed in config.seeds}
    there = (rounds.parent.name for rounds in directory.glob(f"seed-*/{ROUNDS}"))
    others = sorted(name for name in there if name not in mine)
    if others and seal is not None and not seal.edited:
        raise InputError(f"{file} is of another run: its seeds are {config.seeds}, and {', '.join(others)} is there. "
                         f"Restore it, or take it as it is: {accepting(directory)}")
    return config


def edited(directory: Path) -> bool:
    """Whether a run was edited by hand and taken as it is."""
    seal, _ = _config(directory / CONFIG)
    return seal is not None and seal.edited


def _config(file: Path) -> tuple[Seal | None, bytes]:
    try:
        return read_seal(read_own(file, 2**20))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None


def _parsed(file: Path, text: bytes, overrides: list[str] | None = None) -> Config:
    values = parse_yaml(text, file)
    missing = [name for name in Config.model_fields if name not in values and name not in _SINCE]
    if missing:
        raise InputError(f"{file} is not what a run writes: it lacks {', '.join(missing)}. Restore it; a run's config "
                         "is never completed by defaults.")
    try:
        return Config.load(values, overrides)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _were_sealed(directory: Path) -> bool:
    """Whether the rounds have checksums."""
    rounds = directory.glob(f"seed-*/{ROUNDS}")
    return any(open_object(line)[2] is not None for file in rounds for line in _lines(file))


@functools.cache
def _say_unsealed(directory: Path) -> None:
    _log.info("%s was begun before runs were sealed: it is read without comparing checksums.", directory)


# --- where it ran -----------------------------------------------------------------------------------------------------


def write_environment(directory: Path, environment: dict[str, Any]) -> None:
    """What a run ran on and with. Where the name is a directory's, nothing is written: no run stops for it."""
    file = directory / ENVIRONMENT
    if not file.is_dir() or file.is_symlink():
        write_atomic(file, seal_object(json.dumps(environment, indent=1).encode(), run_name(directory)))


def read_environment(directory: Path) -> dict[str, Any]:
    """What a run ran on and with. Raises `InputError`, in a sentence, where the file does not say."""
    file = directory / ENVIRONMENT
    try:
        text, _, right = open_object(read_own(file), run_name(directory))
        environment = parse_json(text)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # json and utf-8 errors are ValueErrors
        raise InputError(f"{file} is damaged: {error}.") from None
    if not isinstance(environment, dict) or not isinstance(environment.get("dataset"), dict):
        raise InputError(f"{file} is not what a run writes.")
    if right is False or (right is None and run_name(directory)):
        raise InputError(f"{file} was edited, or is of another run.")
    return environment


# --- the rounds -------------------------------------------------------------------------------------------------------


def read_rounds(directory: Path) -> list[Record]:
    """The finished rounds of a seed. A last line without its newline was being written when the run was killed."""
    file = directory / ROUNDS
    records: list[Record] = []
    rounds = []
    check = _start(directory)
    sealed = bool(check)
    for number, line in enumerate(_lines(file), start=1):
        text, check, right = open_object(line, check)
        try:
            records.append(parse_json(text))
            rounds.append(records[-1]["round"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(file, number, str(error)) from None
        if right is False or (right is None and sealed):
            raise _damaged(file, number, "its checksum is missing" if right is None else
                           "its checksum is another: it was edited, or is of another run or seed")
        sealed = bool(right)
    if rounds != list(range(len(rounds))):
        raise InputError(f"{file} holds the rounds {rounds}, not 0, 1, 2, ...: restore it, or start a new run.")
    return records


def _damaged(file: Path, number: int, why: str) -> InputError:
    return InputError(f"{file} is damaged in line {number} ({why}). Delete its lines from that one on; --resume then "
                      "repeats those rounds. If somebody edited it and it is to count: "
                      f"{accepting(file.parent.parent)}")


def drop_unfinished_line(directory: Path) -> None:
    """Cut off what was being written when the run was killed, so that the next line starts at its beginning."""
    file = directory / ROUNDS
    if os.path.lexists(file):
        whole = read_own(file).rfind(b"\n") + 1
        with open_own(file, os.O_RDWR) as stream:
            if whole < os.fstat(stream.fileno()).st_size:
                stream.truncate(whole)


def append_round(directory: Path, record: Record) -> None:
    """Make a finished round durable."""
    text = json.dumps(record, allow_nan=False).encode()
    append_durably(directory / ROUNDS, seal_object(text, _chain(directory)) + b"\n")


def rewrite_rounds(directory: Path, records: list[Record]) -> None:
    """Put other lines in the place of all, sealed anew."""
    check, lines = _start(directory), []
    for record in records:
        text = json.dumps(record, allow_nan=False).encode()
        lines.append(seal_object(text, check) + b"\n")
        check = open_object(text, check)[1]
    write_atomic(directory / ROUNDS, b"".join(lines))


def accept_changes(directory: Path) -> list[str]:
    """Take a run as somebody has edited it: seal it anew, and mark it as edited. Returns what was changed.

    Raises `InputError` for what cannot be read at all.
    """
    file = directory / CONFIG
    seal, text = _config(file)
    _parsed(file, text)
    if seal is None and not _were_sealed(directory):
        return []  # of before there were seals
    name, changed = seal.name if seal else secrets.token_hex(8), []
    if seal is None or Seal.of(text.decode(), name).digest != seal.digest:
        changed.append(CONFIG)
    seeds = sorted(rounds.parent for rounds in directory.glob(f"seed-*/{ROUNDS}"))
    for seed in seeds:
        try:
            if read_rounds(seed) and not seal:
                changed.append(f"{seed.name}/{ROUNDS}")
        except InputError:
            changed.append(f"{seed.name}/{ROUNDS}")
    if changed:
        write_atomic(file, Seal.of(text.decode(), name, True).written(text.decode()))
        for seed in seeds:
            if f"{seed.name}/{ROUNDS}" in changed or seal is None:
                rewrite_rounds(seed, [_object(seed / ROUNDS, i, line) for i, line in enumerate(_lines(seed / ROUNDS))])
                read_rounds(seed)
    return changed


def _object(file: Path, i: int, line: bytes) -> Record:
    try:
        return dict(parse_json(open_object(line)[0]))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is no JSON in line {i + 1} ({error}): delete its lines from that one on.") from None


def _lines(file: Path) -> Iterator[bytes]:
    if os.path.lexists(file):
        yield from read_own(file, LINES).split(b"\n")[:-1]


def _start(directory: Path) -> str:
    """What the first line of a seed is chained to; empty where the run has no seal."""
    name = run_name(directory.parent)
    return f"{name} {directory.name}" if name else ""


def run_name(directory: Path) -> str:
    """The name that a run was given, to which what is sealed in it is chained; empty where it has no seal."""
    config = directory / CONFIG
    seal = _config(config)[0] if config.is_file() else None
    return seal.name if seal else ""


def _chain(directory: Path) -> str:
    """What the next line of a seed is chained to."""
    check = _start(directory)
    for line in _lines(directory / ROUNDS):
        check = open_object(line, check)[1]
    return check


def update_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Add arrays to an ``.npz`` file, or replace them, atomically. One that is damaged is begun anew, and said."""
    held: dict[str, np.ndarray] = {}
    try:
        held = read_arrays(file, ARRAYS_BYTES)
    except FileNotFoundError:
        pass
    except InputError as error:
        _log.warning("%s It is begun anew: the report will lack what it held.", error)
        if file.is_dir() and not file.is_symlink():
            return
    write_arrays(file, held | arrays)


def write_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """An ``.npz`` file, atomically."""
    write_atomic(file, lambda stream: np.savez_compressed(stream, **arrays))  # type: ignore[arg-type]
