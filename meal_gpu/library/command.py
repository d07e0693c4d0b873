"""``meal-gpu query``: a data set that a config names, with predictions that somebody saved."""

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config import Config
from ..data.datasets import open_dataset
from ..display import number
from ..errors import InputError
from ..records import Record
from ..timing import Progress
from .network import Outputs
from .query import Answer, query


def query_saved(config: Config, predictions: Path, labelled: list[Path], out: Path | None, outputs: Outputs,
                align_corners: bool, progress: Progress) -> Answer:
    """What ``query`` of a config asks for, by a directory of predictions that are called like the images of its pool.

    ``labelled`` are ``query.json`` files of earlier calls: their patches are not asked for again, and draws are those
    of the round after them.
    """
    if not predictions.is_dir():
        raise InputError(f"--predictions is {predictions}, which is no directory: give one with a .npy, .npz or .pt "
                         "file per image.")
    done: list[Record] = []
    for file in labelled:
        done += _patches(file, config)
    asked, names = config.query, [sample.name for sample in open_dataset(config.data).train]
    return query(
        predictions, None, config.data.grid, asked.n_query, labelled=done, strategy=asked.strategy,
        seed=config.seeds[0], round=len(labelled), score=asked.score, n_informative=asked.n_informative,
        selector=asked.selector, min_distance=asked.min_distance, umap=config.umap.model_dump(exclude={"backend"}),
        align_corners=align_corners, outputs=outputs, names=names, size=config.data.image_size, out=out,
        progress=progress)


def shown(answer: Answer, out: Path | None, console: Console) -> None:
    """The first twenty patches as a table, and where all of them are."""
    table = Table("image", "row", "col", "box (y0, x0, y1, x1)", "score", box=None, pad_edge=False)
    for patch in answer.patches[:20]:
        place = (str(patch["row"]), str(patch["col"]), ", ".join(map(str, patch["box"])))
        table.add_row(escape(patch["image"]), *place, number(patch["score"]))
    console.print(table)
    if len(answer.patches) > 20:
        console.print(f"and {len(answer.patches) - 20} more", highlight=False)
    if out is not None:
        console.print(f"all {len(answer.patches)}: {out / 'query.json'}", highlight=False, soft_wrap=True, markup=False)


def _patches(file: Path, config: Config) -> list[Record]:
    try:
        content = json.loads(file.read_bytes())
        grid, size, patches = content["grid"], content["image_size"], content["patches"]
        found = [{key: patch[key] for key in ("image", "row", "col")} for patch in patches]
    except OSError as error:
        raise InputError(f"--labelled is {file}, which cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--labelled is {file}, which is no query.json that `meal-gpu query --out` wrote.") from None
    if grid != list(config.data.grid) or size != list(config.data.image_size):
        raise InputError(f"{file} is of images {size} under a grid {grid}, and the config says data.image_size: "
                         f"{list(config.data.image_size)} and data.grid: {list(config.data.grid)}. Use those that it "
                         "was made with.")
    return found
