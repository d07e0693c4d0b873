"""``meal-gpu init``: look at a folder, and write a config that a run can start from."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..configfile import parse_yaml
from ..data.datasets import open_dataset
from ..data.maskvalues import parse_classes
from ..data.survey import survey
from ..engine.feasible import check_feasible
from ..errors import InputError
from ..files import write_atomic
from ..paths import expand
from ..timing import Progress, no_progress
from .proposal import propose
from .template import text

FILE = "meal.yaml"


@dataclass(frozen=True)
class Begun:
    config: Path
    told: list[str]
    """What was found, and what was decided by it."""
    commands: list[str]
    """What to call next."""


def begin(directory: Path, images: Path, masks: Path | None = None, classes: str | None = None,
          progress: Progress = no_progress) -> Begun:
    """Write ``meal.yaml`` into a directory, which is made where it is not there.

    Raises `InputError` where there is one already, for files that a run would refuse, where classes cannot be told, and
    for a pool too small to choose from. Nothing is written then.
    """
    directory = expand(directory)
    file = directory / FILE
    if os.path.lexists(file):
        raise InputError(f"{file} is there already, and is not overwritten: give another directory, or remove it.")
    found = survey(images, masks, parse_classes(classes) if classes is not None else None, progress)
    made = propose(found)
    made.data["store"] = str((directory / "store").absolute())
    call = shlex.join(["meal-gpu", "init", str(directory), "--images", str(images),
                       *(["--masks", str(masks)] if masks is not None else []),
                       *(["--classes", classes] if classes is not None else [])])
    shown, out = shlex.quote(str(file)), shlex.quote(str(directory / "run"))
    content = text(made, call, shown)
    config = Config.load(parse_yaml(content, file))
    check_feasible(config, open_dataset(config.data))
    try:
        write_atomic(file, content.encode())
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}. Give another directory.") from None
    return Begun(file, made.told, [f"meal-gpu check {shown}", f"meal-gpu info {shown}",
                                   f"meal-gpu run {shown} --out {out}"])
