"""What the parts of the recipe are worth, a table in ``docs/results.md``: ``python -m meal_gpu.bench.show.recipe``.

Made of ``bench/results/camvid_recipe``: ``small.yaml``, the sweep; a folder of each of its points with the run's
``rounds.jsonl``; and ``steps.json`` of `parts.recipe`, what a step of each costs.
"""

import json
from pathlib import Path
from typing import Any

from meal_gpu.config import Config
from meal_gpu.sweepfile import load_points

from .marks import Marked, row

BENCH = Path(__file__).resolve().parents[1]
PAGE, RESULTS = BENCH.parent / "docs" / "results.md", BENCH / "results" / "camvid_recipe"
SWEEP, STEPS = "small.yaml", "steps.json"
HERE = Marked(PAGE, "recipe", "recipe")
RARE = ("Pole", "SignSymbol", "Pedestrian", "Bicyclist")


def table(results: Path = RESULTS) -> str:
    """The first point of the sweep has no part; the others are set against it."""
    points = load_points(results / SWEEP)
    plain, measured = points[0], {point.name: last_round(results / point.name) for point in points}
    costs: dict[str, Any] = json.loads((results / STEPS).read_text()) if (results / STEPS).exists() else {"steps": {}}
    rows = [["part", "what is set", "mIoU", "difference", "rare classes", "steps", "time of a step"], ["---"] * 7]
    base, missing = measured[plain.name], []
    for point in points:
        last, part = measured[point.name], point.name.partition("-seed-")[0]
        if last is None or base is None:
            missing.append(f"`{part}`")
            continue
        rows.append([part, _set(point.config, plain.config) or "–", f"{last['miou']:.3f}",
                     "" if point is plain else f"{last['miou'] - base['miou']:+.3f}",
                     f"{rare(last):.3f}",
                     f"{steps_of(point.config, last['n_labelled']):,}", _cost(costs["steps"].get(part))])
    text = "\n".join(map(row, rows))
    if missing:
        text += f"\n\nNot measured yet: {', '.join(missing)}."
    if costs["steps"]:
        text += (f"\n\nTimes of a step: {costs['what']}; processors' time in turns, over that of a plain step beside "
                 f"it, median (20–80 %); {costs['cpu']}, threads: {costs['threads']}, torch {costs['torch']}.")
    return text + "\n"


def last_round(directory: Path) -> dict[str, Any] | None:
    """In a seed's directory: its score is that of the last epoch, chosen by nobody."""
    file = directory / "rounds.jsonl"
    if not file.exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text().splitlines()[-1])
    return {**found["last"], "n_labelled": found["n_labelled"], "fraction": found["fraction"]}


def rare(last: dict[str, Any]) -> float:
    """The mean IoU of `RARE`."""
    return sum(last["iou"][name] or 0.0 for name in RARE) / len(RARE)


def _set(config: Config, plain: Config) -> str:
    mine, its = config.flat(), plain.flat()
    return ", ".join(f"`{key}: {json.dumps(mine[key]).strip(chr(34))}`" for key in mine if mine[key] != its[key])


def steps_of(config: Config, n_labelled: int) -> int:
    """Of the last training."""
    per_epoch = n_labelled // config.train.batch_size
    return per_epoch * config.train.lasting(config.train.final_epochs, per_epoch)


def _cost(ratios: list[float] | None) -> str:
    return "–" if ratios is None else f"× {ratios[1]:.2f} ({ratios[0]:.2f}–{ratios[2]:.2f})"


def main() -> None:
    HERE.write(table())


if __name__ == "__main__":
    main()
