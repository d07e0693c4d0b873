"""What another training makes of labels that were bought, a table in ``docs/results.md``: ``python -m
meal_gpu.bench.show.labels``.

Made of ``bench/results/camvid_modern``: ``labels.yaml``, the sweep, and a folder of each of its points with the run's
``rounds.jsonl``; and of the runs that bought the labels, in ``bench/results/camvid``.
"""

from pathlib import Path
from typing import Any

from meal_gpu.sweepfile import load_points

from .marks import Marked, row
from .recipe import BENCH, PAGE, last_round, rare, steps_of

RESULTS = BENCH / "results"
SWEEP = "labels.yaml"
HERE = Marked(PAGE, "labels", "labels")


def table(results: Path = RESULTS) -> str:
    """Scores are those of the last epoch. The point that has all labels is what the others are a share of."""
    points = load_points(results / "camvid_modern" / SWEEP)
    found = {point.name: last_round(results / "camvid_modern" / point.name) for point in points}
    most = max((last["miou"] for last in found.values() if last and last["fraction"] == 1), default=None)
    rows = [["labels", "patches", "steps", "the paper's training", "this one", "difference", "rare classes",
             "of all labels"], ["---"] * 8]
    missing = []
    for point in points:
        last, name = found[point.name], point.name.partition("-seed-")[0]
        if last is None:
            missing.append(f"`{name}`")
            continue
        before = last_round(results / "camvid" / name / "seed-0")
        rows.append([_who(name, before), f"{last['n_labelled']:,}", f"{steps_of(point.config, last['n_labelled']):,}",
                     *_beside(before, last), f"{rare(last):.3f}", f"{last['miou'] / most:.0%}" if most else "–"])
    text = "\n".join(map(row, rows))
    return text + (f"\n\nNot run yet: {', '.join(missing)}." if missing else "") + "\n"


def _who(name: str, before: dict[str, Any] | None) -> str:
    return f"bought by `{name}`" if before else name


def _beside(before: dict[str, Any] | None, last: dict[str, Any]) -> list[str]:
    if before is None:
        return ["–", f"{last['miou']:.3f}", ""]
    return [f"{before['miou']:.3f}", f"{last['miou']:.3f}", f"{last['miou'] - before['miou']:+.3f}"]


def main() -> None:
    HERE.write(table())


if __name__ == "__main__":
    main()
