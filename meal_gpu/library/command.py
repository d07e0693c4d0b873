"""``meal-gpu query``: a data set that a config names, with a network of somebody's as files."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config import Config
from ..data.datasets import open_dataset
from ..data.ingest import ingest
from ..display import number
from ..errors import InputError
from ..network.reading import Outputs
from ..records import Record
from ..timing import Progress
from .images import PREPARED
from .onnxfile import Onnx
from .query import Answer, query


def query_pool(config: Config, predictions: Path | None, network: Path | None, pixels: str | None,
               features: str | None, labelled: list[Path], out: Path | None, outputs: Outputs, align_corners: bool,
               progress: Progress) -> Answer:
    """What ``query`` of a config asks for, by one of: saved predictions, called like its images; an ONNX file.

    ``labelled`` are ``query.json`` files of earlier calls: their patches are not asked for again, and draws are those
    of the round after them. ``pixels`` names how an ONNX file's input is normalised, ``features`` its output of maps.
    """
    if (predictions is None) == (network is None):
        raise InputError("Give --predictions DIR or --onnx FILE (one of the two).")
    if predictions is not None and not predictions.is_dir():
        raise InputError(f"--predictions is {predictions}, which is no directory: give one with a .npy, .npz or .pt "
                         "file per image.")
    if predictions is not None and (pixels or features):
        raise InputError("--pixels and --features go with --onnx FILE: predictions are there already.")
    if network is not None and pixels not in PREPARED:
        given = f"--pixels is '{pixels}'" if pixels else f"{network} does not say how its input is normalised"
        raise InputError(f"{given}. State it: --pixels imagenet (ImageNet's mean and deviation), unit (0 to 1) or "
                         "bytes (0 to 255).")
    done: list[Record] = []
    for file in labelled:
        done += _patches(file, config)
    asked, data = config.query, config.data
    if network is not None:
        source: dict[str, Any] = {"network": Onnx(network), "images": ingest(data, progress).train}
    else:
        source = {"network": predictions, "images": None,
                  "names": [sample.name for sample in open_dataset(data).train]}
    return query(
        **source, grid=data.grid, n=asked.n_query, labelled=done, strategy=asked.strategy,
        features=features, seed=config.seeds[0], round=len(labelled), score=asked.score,
        n_informative=asked.n_informative, selector=asked.selector, min_distance=asked.min_distance,
        umap=config.umap.model_dump(exclude={"backend"}), align_corners=align_corners, outputs=outputs, prepare=pixels,
        size=data.image_size, out=out, progress=progress)


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
