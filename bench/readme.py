"""The README's table of results, made of ``bench/results/*.json``: ``python -m meal_gpu.bench.readme`` writes it in."""

import json
import sys
from pathlib import Path

from meal_gpu.errors import InputError
from meal_gpu.files import write_atomic

from .result import SCHEMA, Result
from .table import advice, share, whole_text

HERE = Path(__file__).resolve().parent
README, RESULTS = HERE.parent / "README.md", HERE / "results"
BEGIN = "<!-- bench: written by python -m meal_gpu.bench.readme, do not edit -->"
END = "<!-- bench: end -->"


def section(results: Path = RESULTS) -> str:
    """The text between the marks, for all results of this schema in a directory."""
    found = [(file.stem, Result.read(file)) for file in sorted(results.glob("*.json")) if _is_result(file)]
    if not found:
        return "No result has been recorded with this version.\n"
    return "\n".join(_one(name, result) for name, result in found)


def _is_result(file: Path) -> bool:
    content = json.loads(file.read_bytes())
    return isinstance(content, dict) and content.get("schema_version") == SCHEMA and content["part"] != "scale"


def _one(name: str, result: Result) -> str:
    machine = result.machine
    where = machine.get("gpu") if result.device == "cuda" else machine["cpu"]
    lines = [f"### bench {result.part}: {result.subject}", "",
             f"[`{name}.json`](bench/results/{name}.json): {where}, threads: {result.roofs.threads}, torch "
             f"{machine['torch']}, commit {machine.get('commit')}.", ""]
    if result.part == "stream":
        return "\n".join([*lines, *_memory(result), ""])
    whole = result.part == "round"
    lines = [*lines, "| stage | items | median ms (20–80 %) | items/s | bound | of roof | "
             f"{'of a round | ' if whole else ''}× baseline (20–80 %) |", f"|{' --- |' * (8 if whole else 7)}"]
    for stage in result.stages:
        versus = [f"{other.name} {other.ratio[1]:.1f} ({other.ratio[0]:.1f}–{other.ratio[2]:.1f})"
                  for other in stage.baselines if other.ratio]
        times = stage.times
        lines.append(f"| {stage.name} | {stage.items:,} {stage.unit} | {times.median_ms:,.4g} ({times.low_ms:,.4g}–"
                     f"{times.high_ms:,.4g}) | {stage.items_per_second:,.4g} | {stage.bound or '–'} | "
                     f"{f'{stage.share_of_roof:.0%}' if stage.bound else '–'} | "
                     f"{f'{share(stage)} | ' if whole else ''}{'; '.join(versus) or '–'} |")
    lines.append("")
    if result.whole:
        lines.append(f"{whole_text(result.whole)} ")
    lines += [f"{note} " for note in result.notes]
    below = [f"{stage.name}, {stage.note}" for stage in result.stages if "of its roof:" in stage.note]
    if below:
        lines += ["", "Below half of their roof:", "", *(f"- {line}" for line in below), ""]
    lines += [f"{one.stage} grows with {one.over} ^ {one.exponent:.2f}. " for one in result.growth]
    lines += [f"Next: {advice(result)}", ""] if whole else []
    return "\n".join(lines)


def _memory(result: Result) -> list[str]:
    """The memory at its highest, each phase in a process of its own."""
    lines = ["| | images | seconds | most memory, GB | of it when all was imported | added |",
             "| --- | --- | --- | --- | --- | --- |"]
    for stage in result.stages:
        highest, added = stage.peak.host_bytes or 0, stage.peak.host_added_bytes or 0
        lines.append(f"| {stage.name.split()[0]} | {stage.items:,} | {stage.times.median_ms / 1e3:,.0f} | "
                     f"{highest / 1e9:.2f} | {(highest - added) / 1e9:.2f} | {added / 1e9:.2f} |")
    return lines


def updated(readme: str, content: str) -> str:
    """A README with new content between its marks. Raises `InputError` where they are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"README.md lacks the marks '{BEGIN}' and '{END}': put them where the table is to stand.")
    return f"{before}{BEGIN}\n{content}{END}{after}"


def main() -> None:
    text = README.read_text()
    new = updated(text, section())
    if new != text:
        write_atomic(README, new.encode())
        print(f"updated {README}", file=sys.stderr)


if __name__ == "__main__":
    main()
