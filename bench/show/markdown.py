"""The tables of results, made of ``bench/results/*.json`` by ``python -m meal_gpu.bench.show.markdown``.

``bench/results/README.md`` has all of them, ``docs/benchmarks.md`` those that say most.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import get_args

from ..result import SCHEMA, Part, Result
from .marks import Marked, rewrite, row
from .table import across, advice, count, milliseconds, share, whole_text

BENCH = Path(__file__).resolve().parents[1]
PAGE, RESULTS = BENCH.parent / "docs" / "benchmarks.md", BENCH / "results"
ALL = RESULTS / "README.md"
HERE = Marked(PAGE, "bench", "markdown")
PARTS: tuple[Part, ...] = get_args(Part)
ON_PAGE = PARTS[:3]


def section(folder: str, parts: Collection[str] = PARTS, results: Path = RESULTS, level: int = 2) -> str:
    """The tables of all results of these parts, with links to them in ``folder``; headings of this level."""
    found = [(file.stem, Result.read(file)) for file in sorted(results.glob("*.json")) if _is_result(file)]
    wanted = sorted((pair for pair in found if pair[1].part in parts), key=lambda pair: PARTS.index(pair[1].part))
    if not wanted:
        return "No result has been recorded with this version.\n"
    return "\n".join(_one(f"[`{name}.json`]({folder}{name}.json)", result, level) for name, result in wanted)


def _is_result(file: Path) -> bool:
    content = json.loads(file.read_bytes())
    return isinstance(content, dict) and content.get("schema_version") == SCHEMA


def _one(link: str, result: Result, level: int) -> str:
    machine = result.machine
    where = machine.get("gpu") if result.device == "cuda" else machine["cpu"]
    lines = [f"{'#' * level} bench {result.part}: {result.subject}", "",
             f"{link}: {where}, threads: {result.roofs.threads}, torch {machine['torch']}, commit "
             f"{machine.get('commit')}.", ""]
    if result.part == "stream":
        return "\n".join([*lines, *_memory(result), ""])
    lines += [*_stages(result), ""]
    if result.whole:
        lines += [whole_text(result.whole), ""]
    for note in result.notes:
        lines += [note, ""]
    below = [f"- {stage.name}, {stage.note}" for stage in result.stages if "of its roof:" in stage.note]
    if below:
        lines += ["Below half of their roof:", "", *below, ""]
    if result.growth:
        lines += [*_growth(result), ""]
    lines += [f"Next: {advice(result)}", ""] if result.part == "round" else []
    return "\n".join(lines)


def _stages(result: Result) -> list[str]:
    whole = result.part == "round"
    compared = any(stage.baselines for stage in result.stages)
    heads = ["stage", "items", "median ms (20–80 %)", "items/s", "bound", "of roof", *(["of a round"] if whole else []),
             *(["times as fast as (20–80 %)"] if compared else [])]
    lines = [row(heads), row(["---"] * len(heads))]
    for stage in result.stages:
        versus = [f"{other.name} {other.ratio[1]:,.1f} ({other.ratio[0]:,.1f}–{other.ratio[2]:,.1f})"
                  for other in stage.baselines if other.ratio]
        lines.append(row([
            stage.name, f"{stage.items:,} {stage.unit}",
            f"{milliseconds(stage.times.median_ms)} ({across(stage.times)})", count(stage.items_per_second),
            stage.bound or "–", f"{stage.share_of_roof:.0%}" if stage.bound else "–",
            *([share(stage)] if whole else []),
            *(["; ".join(versus) or "–"] if compared else [])]))
    return lines


def _growth(result: Result) -> list[str]:
    lines = [row(["stage", "over", "seconds", "time ~ n^", "memory ~ n^"]), row(["---"] * 5)]
    return lines + [row([
        one.stage, f"{', '.join(f'{size:,.0f}' for size in one.sizes)} {one.over}",
        ", ".join(f"{seconds:.3g}" for seconds in one.seconds), f"{one.exponent:.2f}",
        "–" if one.memory_exponent is None else f"{one.memory_exponent:.2f}"]) for one in result.growth]


def _memory(result: Result) -> list[str]:
    """The memory at its highest, each phase in a process of its own."""
    heads = ["", "images", "seconds", "most memory, GB", "of it when all was imported", "added"]
    lines = [row(heads), row(["---"] * len(heads))]
    for stage in result.stages:
        highest, added = stage.peak.host_bytes or 0, stage.peak.host_added_bytes or 0
        lines.append(row([stage.name.split()[0], f"{stage.items:,}", f"{stage.times.median_ms / 1e3:,.0f}",
                           *(f"{size / 1e9:.2f}" for size in (highest, highest - added, added))]))
    return lines


def some() -> str:
    """What stands between the marks of ``docs/benchmarks.md``."""
    return section("../bench/results/", ON_PAGE, level=3)


def everything() -> str:
    """``bench/results/README.md``."""
    return ("# Results\n\nMade of the files beside this one by `python -m meal_gpu.bench.show.markdown`; do not edit. "
            "[How they are measured](../../docs/benchmarks.md#how-it-is-measured).\n\n" + section(""))


def main() -> None:
    HERE.write(some())
    rewrite(ALL, everything())


if __name__ == "__main__":
    main()
