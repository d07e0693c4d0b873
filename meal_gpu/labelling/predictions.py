"""What the network said of the patches that a query asks for: the start that people correct, and what they are
compared with."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import read_arrays, read_own, write_atomic
from .query import Item, Query, pixels_sha256

FOLDER = "predictions"
_BYTES = 2**32


def of_round(seed_directory: Path, round_: int) -> dict[int, np.ndarray]:
    """Patch id → class indices uint8 ``[patch_height, patch_width]``, as the report keeps them; empty without."""
    try:
        held = read_arrays(seed_directory / "gallery" / f"round-{round_:02d}.npz", _BYTES)
        return dict(zip(held["ids"].tolist(), held["prediction"].astype(np.uint8), strict=True))
    except (FileNotFoundError, InputError, KeyError, ValueError):
        return {}  # the first round has none, and no query waits for what is only a start


class Starts(Mapping[str, np.ndarray]):
    """Predictions of queries by the ids of their items, read when they are asked for."""

    def __init__(self, queries: Mapping[Path, Query]) -> None:
        """``queries`` by their folders."""
        self._items = {item.id: (folder, item) for folder, query in queries.items() for item in query.items
                       if item.prediction_sha256}
        self._held: dict[str, np.ndarray] = {}

    def __getitem__(self, id_: str) -> np.ndarray:
        """uint8, of the patch in the original's pixels. Raises `InputError` where the file is another."""
        if id_ not in self._held:
            self._held[id_] = read(*self._items[id_])
        return self._held[id_]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def write(folder: Path, name: str, labels: np.ndarray) -> None:
    """An index PNG of labels uint8 ``[H, W]``."""
    image = Image.fromarray(labels)
    write_atomic(folder / name, lambda stream: image.save(stream, format="PNG"))


def read_png(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    """uint8 ``[H, W]`` of an index PNG that meal-gpu wrote. Raises `ValueError` for anything else."""
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        if image.mode != "L" or (image.height, image.width) != shape:
            raise ValueError
        return np.array(image)
    except Exception:  # Pillow fails in whatever way the damage leads it to
        raise ValueError("it is no index PNG of the patch's size") from None


def read(folder: Path, item: Item) -> np.ndarray:
    file = folder / FOLDER / f"{item.id}.png"
    try:
        labels = read_png(read_own(file), item.shape)
    except (OSError, ValueError):
        labels = None
    if labels is None or pixels_sha256(labels) != item.prediction_sha256:
        raise InputError(f"{file} is not the prediction that went out with the query. If somebody labelled there, move "
                         f"the file to {folder / 'masks'} and restore the prediction: remove {folder / 'query.json'}, "
                         "and --resume writes the query again.")
    return labels
