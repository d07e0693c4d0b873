"""Writes run directories that look like real ones, without training anything: street-like patches, curves that rise."""

import io
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from meal_gpu.config import Config
from meal_gpu.report import print_table, write_report

CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian",
           "bicyclist"]
PALETTE = [[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
           [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]]
LEVEL = {"random": 0.41, "entropy": 0.43, "meal": 0.46, "meal_ft": 0.47}
DIFFICULTY = np.array([1.9, 1.5, 0.35, 1.85, 1.35, 1.4, 0.5, 0.45, 1.3, 0.6, 0.55])
CELLS = 16  # a 4 x 4 grid

Picture = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def street(size: tuple[int, int]) -> Picture:
    """Makes pictures: for a patch id an image uint8 [ph, pw, 3] and its labels uint8 [ph, pw]."""
    height, width = size
    y, x = np.mgrid[:height, :width]

    def draw(patch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        row = patch % CELLS // 4
        truth = np.full(size, [0, 1, 1, 3][row], np.uint8)
        truth[y > height * rng.uniform(0.3, 0.9)] = [1, 5, 4, 3][row]
        for _ in range(3):
            kind = int(rng.integers(len(CLASSES)))
            cy, cx = rng.uniform(0, height), rng.uniform(0, width)
            ry, rx = height * rng.uniform(0.08, 0.3), width * rng.uniform(0.05, 0.25)
            truth[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = kind
        truth[y > height * 0.97] = 255
        colours = np.array([*PALETTE, *[[0, 0, 0]] * (256 - len(PALETTE))])
        shade = 40 + 0.6 * colours[truth] + rng.normal(0, 8, (*size, 1)) + (30 * y / height)[..., None]
        return np.clip(shade, 0, 255).astype(np.uint8), truth

    return draw


def write_run(
    path: Path, strategy: str = "meal", *, frozen: bool = True, seeds: Sequence[int] = (0, 1, 2), rounds: int = 8,
    done: Mapping[int, int] | None = None, n_images: int = 367, n_val_images: int = 101, n_query: int = 32,
    patch: tuple[int, int] = (90, 120), gallery: bool = True, embedding: bool = True, absent: Sequence[str] = (),
    names: Sequence[str] = CLASSES, picture: Picture | None = None, overrides: Mapping[str, Any] | None = None,
    image_name: str = "0001TP_{:06d}.png", stop_set: bool = False,
) -> Path:
    """Write a run directory and return it.

    ``done`` gives the finished rounds of seeds that are not finished; ``overrides`` are config sections merged in.
    The default is the paper's protocol on CamVid. The two large things, ``gallery`` and ``embedding``, can be left out;
    with ``stop_set`` rounds leave predictions that change less and less.
    """
    values: dict[str, Any] = {
        "seeds": list(seeds),
        "data": {"dataset": "camvid", "root": "/data/camvid"},
        "model": {"freeze_backbone": frozen},
        "query": {"strategy": strategy, "rounds": rounds, "n_query": n_query},
    }
    for section, changes in (overrides or {}).items():
        values[section] = {**values.get(section, {}), **changes}
    config = Config.load(values)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config.dump())
    n_patches = n_images * CELLS
    (path / "environment.json").write_text(json.dumps({
        "meal_gpu": "0.1.0", "python": "3.11.7", "torch": "2.14.1", "device": "cpu",
        "device_reason": "no CUDA device", "cpu": "Some CPU @ 2.6 GHz", "threads": 2,
        "backends": {"umap": "umap-learn", "entropy": "numba"},
        "dataset": {"name": config.data.dataset, "class_names": list(names), "palette": PALETTE[:len(names)],
                    "n_images": n_images, "n_val_images": n_val_images, "patch": list(patch), "n_patches": n_patches},
    }))
    for seed in seeds:
        folder = path / f"seed-{seed}"
        folder.mkdir()
        finished = (done or {}).get(seed, rounds + 1)
        _write_seed(folder, config, seed, finished, n_patches, n_val_images, names, absent, gallery, embedding,
                    picture or street(patch), patch, image_name, stop_set)
    return path


def _write_seed(folder: Path, config: Config, seed: int, finished: int, n_patches: int, n_val_images: int,
                names: Sequence[str], absent: Sequence[str], gallery: bool, embedding: bool, picture: Picture,
                patch: tuple[int, int], image_name: str, stop_set: bool) -> None:
    strategy, n_query = config.query.strategy, config.query.n_query
    rng = np.random.default_rng([seed, len(strategy)])
    centres = rng.uniform(-8, 14, (14, 2))
    points = (centres[rng.integers(14, size=n_patches)] + rng.normal(0, 1, (n_patches, 2))).astype(np.float32)
    n_images = n_patches // CELLS
    first = rng.choice(n_images, config.query.n_initial_images or n_images, replace=False)
    order = rng.permutation(n_patches)
    order = order[~np.isin(order // CELLS, first)]
    arrays: dict[str, np.ndarray] = {"points": points} if strategy == "meal" else {}
    scored = strategy != "random"

    def describe(ids: np.ndarray, with_score: bool) -> list[dict[str, Any]]:
        found = []
        for patch_id in ids.tolist():
            image, cell = divmod(patch_id, CELLS)
            row, col = divmod(cell, 4)
            box = list(config.data.tiling().box(cell))
            score = float(rng.uniform(0.4, 1.4)) * patch[0] * patch[1] if with_score else None
            found.append({"id": patch_id, "image": image_name.format(image), "row": row, "col": col, "box": box,
                          "score": score})
        return found

    asked = describe(np.concatenate([np.arange(i * CELLS, (i + 1) * CELLS) for i in first]), False)
    lines, labelled = [], 0
    for number in range(finished):
        queried, labelled = asked, labelled + len(asked)
        last_round = number == config.query.rounds
        ids = order[number * n_query:(number + 1) * n_query]
        asked = [] if last_round else describe(ids, scored)
        level = LEVEL.get(strategy, 0.42) * (1 - 0.42 * math.exp(-labelled / 110)) + rng.normal(0, 0.006)
        level += 0.01 * (not config.model.freeze_backbone)
        iou = np.clip(level * DIFFICULTY[:len(names)] / DIFFICULTY[:len(names)].mean() + rng.normal(0, 0.01), 0, 0.97)
        there = [name not in absent and n_val_images > 0 for name in names]
        best = {n: float(v) if t else None for n, v, t in zip(names, iou, there, strict=True)}
        last = {n: float(v) * 0.97 if t else None for n, v, t in zip(names, iou, there, strict=True)}
        seconds = {"train": 90.0 + 14 * number, "evaluate": 44.0}
        if scored:
            seconds |= {} if last_round else {"score": 38.0}
        if strategy.startswith("meal") and not last_round:
            seconds |= {"embed": 21.0 if number == 0 or strategy == "meal_ft" else 0.1, "select": 0.02}
            candidates = np.concatenate([ids, order[-(200 - n_query):]]) if n_query < 200 else ids
            arrays[f"round_{number}_candidates"] = candidates
            spot = points[candidates] if strategy == "meal" else rng.normal(0, 3, (len(candidates), 2))
            arrays[f"round_{number}_points"] = spot.astype(np.float32)
            arrays[f"round_{number}_chosen"] = ids
        more = {"stop_set": _write_stop_set(folder, number, n_images, patch, len(names))} if stop_set else {}
        lines.append(json.dumps(more | {
            "round": number, "n_labelled": labelled, "fraction": labelled / n_patches,
            "miou": _mean(best), "iou": best, "best_epoch": 20, "last": {"miou": _mean(last), "iou": last},
            "epochs": 32 if last_round else 25,
            "history": [{"epoch": e, "loss": 2 / e, "miou": _mean(best)} for e in (5, 10, 15, 20, 25)],
            "queried": queried, "next_query": asked, "seconds": seconds, "peak_bytes": {"host": int(2.1e9)},
        }))
        if gallery and number:
            _write_gallery(folder, number, np.array([p["id"] for p in queried]), picture, len(names), rng)
    (folder / "rounds.jsonl").write_text("".join(line + "\n" for line in lines))
    if embedding and strategy.startswith("meal"):
        np.savez_compressed(folder / "embedding.npz", **arrays)  # type: ignore[arg-type]


def _write_stop_set(folder: Path, number: int, n_images: int, patch: tuple[int, int], n_classes: int) -> dict[str, Any]:
    """Of 8 images: every round a smaller share of pixels is drawn anew."""
    images, truth = sorted({i % n_images for i in range(8)}), np.random.default_rng(5)
    maps = truth.integers(0, min(n_classes, 4), (len(images), 3, patch[0], patch[1])).cumsum(1)[:, -1] % n_classes
    rng = np.random.default_rng(number)
    other = rng.random(maps.shape) < 0.3 * 0.6**number
    maps = np.where(other, rng.integers(0, n_classes, maps.shape), maps).astype(np.uint8)
    (folder / "stop-set").mkdir(exist_ok=True)
    file = folder / "stop-set" / f"predictions-{number:02d}.npz"
    np.savez_compressed(file, images=np.array(images), predictions=maps)
    return {"images": images, "predictions": zlib.crc32(maps.tobytes())}


def _mean(iou: Mapping[str, float | None]) -> float | None:
    there = [value for value in iou.values() if value is not None]
    return sum(there) / len(there) if there else None


def _write_gallery(folder: Path, number: int, ids: np.ndarray, picture: Picture, n_classes: int,
                   rng: np.random.Generator) -> None:
    images, truths, predictions, entropies = [], [], [], []
    for patch_id in ids.tolist():
        image, truth = picture(patch_id, rng)
        truth = np.where(truth == 255, 255, truth % n_classes).astype(np.uint8)
        edge = np.zeros(truth.shape)
        for axis in (0, 1):
            edge += np.abs(np.diff(truth.astype(int), axis=axis, prepend=0)) > 0
        for _ in range(6):  # uncertainty spreads from the borders of things
            edge = (edge + np.roll(edge, 1, 0) + np.roll(edge, -1, 0) + np.roll(edge, 1, 1) + np.roll(edge, -1, 1)) / 4
        noise = np.kron(rng.uniform(0, 0.8, (6, 6)), np.ones((truth.shape[0] // 6 + 1, truth.shape[1] // 6 + 1)))
        share = np.clip(edge / (edge.max() + 1e-9) + 0.4 * noise[:truth.shape[0], :truth.shape[1]], 0, 1)
        prediction = np.where(share > 0.62, (truth + 1) % n_classes, np.where(truth == 255, 3, truth) % n_classes)
        images.append(image)
        truths.append(truth)
        predictions.append(prediction.astype(np.uint8))
        entropies.append((share * math.log(max(n_classes, 2))).astype(np.float16))
    (folder / "gallery").mkdir(exist_ok=True)
    np.savez_compressed(folder / "gallery" / f"round-{number:02d}.npz", ids=ids, image=np.array(images),
                        truth=np.array(truths), prediction=np.array(predictions), entropy=np.array(entropies))


SMALL = {"patch": (12, 16), "n_images": 20, "n_query": 4, "rounds": 2}
SMALL_QUERY = {"query": {"n_informative": 20}}


def small(path: Path, strategy: str = "meal", **changes: object) -> Path:
    return write_run(path, strategy, **{**SMALL, "overrides": SMALL_QUERY, **changes})  # type: ignore[arg-type]


def table(runs: list, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(runs, console)
    return console.export_text()


def html(runs: list, out: Path) -> str:
    return write_report(runs, out).read_text("utf-8")


def records(run: Path, seed: int) -> list[dict]:
    return [json.loads(line) for line in (run / f"seed-{seed}" / "rounds.jsonl").read_text().splitlines()]


def words(text: str) -> str:
    """What a reader sees: no scripts, no style, no tags (and so no pictures)."""
    return re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
