"""The regression rule, the schema, the table, the page, the command line of the benchmark."""

import importlib
import io
import json
import sys
import time

import numpy as np
import pytest
import typer
from rich.console import Console
from tiny import CPU

from meal_gpu import InputError, cli
from meal_gpu.bench.commands import measured
from meal_gpu.bench.result import Baseline, Estimate, Growth, Result, Stage, Times, Whole, shared, stage
from meal_gpu.bench.show.compare import compare, confirmed, judge, tolerance_of
from meal_gpu.bench.show.page import page
from meal_gpu.bench.show.table import advice, show
from meal_gpu.bench.timing.measure import Calibration, Effort, Timing, interleaved
from meal_gpu.bench.timing.memory import Peak
from meal_gpu.planning.roofline import Roofs, Work

ROOFS = Roofs(2, "float32", bytes=1e10, exps=1e9, flops=1e11, pixels=1e7, dispatches=1e5, updates=1e7)
MACHINE = {"cpu": "a CPU", "cores": 2, "threads": 2, "torch": "2.14.1", "commit": "abc", "meal_gpu": "0.1.0"}


def times(seconds: float, noise: float = 0.02, machine: float = 1.0, memory: float = 1.0, n: int = 9,
          seed: int = 0) -> Times:
    """Samples of a stage on a machine that is ``machine`` times slower, with a multiplicative noise.

    Memory ``memory`` times slower makes all of the stage slower, and the processors' calibration not.
    """
    jitter = 1 + noise * np.abs(np.random.default_rng(seed).standard_normal(n))
    on_quiet = seconds * jitter
    return Times(seconds=tuple(machine * memory * on_quiet), calibrated=tuple(memory * on_quiet / 0.001),
                 by_memory=tuple(on_quiet / 0.0002))


def result(**stages: Times) -> Result:
    made = [Stage(name=name, items=16, unit="images", times=value, per_round=2, work=Work(bytes=10**8, flops=10**9),
                  roof_ms=10.0, bound="FLOP") for name, value in stages.items()]
    return Result(part="round", subject="a pool", settings={"images": 16}, machine=MACHINE, device="cpu", roofs=ROOFS,
                  stages=shared(made))


def regressed(old: Result, new: Result, tolerance: float = 0.1) -> list[str]:
    return [verdict.stage for verdict in compare(old, new, tolerance) if verdict.regressed]


def test_a_slower_stage_is_named_and_no_other():
    old = result(forward=times(0.1), select=times(0.01, seed=1))
    assert regressed(old, result(forward=times(0.1, seed=2), select=times(0.014, seed=3))) == ["select"]
    assert regressed(old, result(forward=times(0.108, seed=2), select=times(0.0108, seed=3))) == []


def test_a_machine_slower_as_a_whole_is_no_regression_and_does_not_hide_one():
    """Twice as slow with the calibration: nothing. A stage of half the speed on top: found."""
    old = result(forward=times(0.1), select=times(0.01, seed=1))
    assert regressed(old, result(forward=times(0.1, machine=2), select=times(0.01, machine=2))) == []
    assert regressed(old, result(forward=times(0.1, machine=2), select=times(0.02, machine=2))) == ["select"]


def test_slower_memory_is_no_regression_and_does_not_hide_one():
    """A neighbour on the memory's bus, which no count of lost time shows: gather takes half as long again by itself."""
    old = result(gather=times(0.01), forward=times(0.1, seed=1))
    assert regressed(old, result(gather=times(0.01, memory=1.5), forward=times(0.1))) == []
    assert regressed(old, result(gather=times(0.014, memory=1.5), forward=times(0.1))) == ["gather"]


def test_where_a_unit_is_missing_the_others_judge():
    """Results from before memory was calibrated can be compared with later ones."""
    before = times(0.1).model_copy(update={"by_memory": ()})
    assert judge("forward", before, times(0.15), 0.1).regressed
    assert not judge("forward", before, times(0.1, machine=1.5), 0.1).regressed


def test_a_disturbed_calibration_is_no_regression():
    undisturbed = times(0.1)
    for unit in ("calibrated", "by_memory"):
        twice = undisturbed.model_copy(update={unit: tuple(2 * value for value in getattr(undisturbed, unit))})
        assert not judge("forward", undisturbed, twice, 0.1).regressed


def test_a_few_slow_samples_are_no_regression():
    steady = times(0.1, noise=0.0)
    assert not judge("forward", steady, Times(seconds=(*steady.seconds[:5], *[0.3] * 4)), 0.1).regressed


def test_what_jumps_within_a_run_is_judged_less_strictly():
    """A spread of 25 % allows 15 % more; an equal loss of a steady stage is found."""
    assert not judge("a", times(0.1, noise=0.5), times(0.115, noise=0.5, seed=1), 0.1).regressed
    assert judge("a", times(0.1), times(0.115, seed=1), 0.1).regressed
    assert judge("a", times(0.1), times(0.1, seed=1), 0.1).limit < 1.13


def test_what_seems_slower_is_measured_again():
    """Slower only once: none. Slower in all three: named. What is not slower is not measured again."""
    old = result(forward=times(0.1), select=times(0.01, seed=1), top=times(0.001, seed=2))
    first = result(forward=times(0.1, seed=3), select=times(0.02, seed=4), top=times(0.002, seed=5))
    asked = []

    def again(names):
        asked.append(names)
        seconds = {"select": times(0.02, seed=6), "top": times(0.001, seed=7)}
        return result(**{name: seconds[name] for name in names}).model_copy(update={"settings": {"only": names}})

    verdicts = confirmed(old, first, 0.1, again)
    assert [verdict.stage for verdict in verdicts if verdict.regressed] == ["select"]
    assert [sorted(names) for names in asked] == [["select", "top"], ["select"]]
    assert {verdict.stage for verdict in verdicts} == {"forward", "select", "top"}
    assert not confirmed(old, old, 0.1, again)[0].regressed
    assert len(asked) == 2


def test_what_others_took_is_allowed_for():
    """A loss of 40 % is a regression on a quiet machine, and none where others had half of the processor."""
    assert judge("a", times(0.1), times(0.14), 0.1).regressed
    assert not judge("a", times(0.1), times(0.14).model_copy(update={"lost": 0.5}), 0.1).regressed


def test_an_injected_sleep_is_found_by_measuring():
    """The whole way: real work, really measured twice, once with a long sleep in one of two stages, the worst then."""
    calibration, array = Calibration(CPU), np.random.default_rng(0).random(120_000)

    def measured(sleep: float) -> Result:
        def sort() -> None:
            np.sort(array)
            time.sleep(sleep)

        stages = {"sort": sort, "sum": lambda: np.cumsum(np.tile(array, 10))}
        # One after the other, as the benchmark measures stages: a stage that sleeps leaves the next with cold caches.
        return result(**{name: Times.of(interleaved({name: stage}, Effort(0.6, 9, 60, 0.1),
                                                    calibration=calibration)[name]) for name, stage in stages.items()})

    first = measured(0.0)
    assert regressed(first, measured(20 * first.stage("sort").times.median_ms / 1e3))[0] == "sort"


def test_incomparable_results_are_refused():
    old = result(forward=times(0.1))
    for changes, message in (({"settings": {"images": 8}}, "images was 16 and is 8"),
                             ({"machine": {**MACHINE, "threads": 1}}, "threads was 2 and is 1"),
                             ({"part": "train"}, "equal parts"), ({"device": "cuda"}, "different devices")):
        with pytest.raises(InputError, match=message):
            compare(old, old.model_copy(update=changes), 0.1)


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.25", 0.25), ("0", 0.0)])
def test_tolerance(text, value):
    assert tolerance_of(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["ten", "-1%", "5000%"])
def test_bad_tolerance(text):
    with pytest.raises(InputError, match="give a share"):
        tolerance_of(text)


@pytest.fixture
def full() -> Result:
    """A result with everything that a result can have."""
    timing = Timing((0.100, 0.110, 0.105), (100.0, 110.0, 105.0), (500.0, 550.0, 525.0))
    eager = Baseline(name="eager", times=times(0.5), ratio=(4.5, 5.0, 5.5), error=1e-6, checked="entropy")
    left_out = Baseline(name="baal", times=None, note="not installed")
    work = Work(bytes=2 * 10**8, flops=5 * 10**9)
    stages = [stage("forward", 384, "patches", timing, ROOFS, work, Peak(10**9, 10**8, None, "VmHWM"), per_round=2,
                    baselines=(eager, left_out)),
              stage("patch_entropy of a long name", 5872, "patches", timing, ROOFS, Work(bytes=10**7, exps=4 * 10**7),
                    Peak(), per_round=1),
              stage("ingest", 468, "images", timing, ROOFS, Work(pixels=10**5), Peak())]
    return Result(
        part="round", subject="CamVid", settings={"images": 367}, machine=MACHINE, device="cpu", roofs=ROOFS,
        stages=shared(stages), whole=Whole(times=times(0.35, n=2), stage_sum_ms=330.0, content="scoring and selection"),
        growth=(Growth(stage="score", over="patches", sizes=(1e3, 1e4), seconds=(0.1, 1.0), host_bytes=(10, 100),
                       exponent=1.0, memory_exponent=None),),
        estimates=(Estimate(stage="forward", device="h100", work=work, milliseconds=0.1, bound="FLOP"),),
        notes=("a note",))


def test_json_is_whole_and_versioned(full, tmp_path):
    file = tmp_path / "r.json"
    full.write(file)
    content = json.loads(file.read_text())
    assert content["schema_version"] == 1
    assert content["stages"][0]["times"]["median_ms"] == pytest.approx(105)
    assert content["stages"][0]["roof_ms"] == pytest.approx(50)
    assert content["stages"][0]["bound"] == "FLOP"
    assert content["stages"][0]["share_of_round"] == pytest.approx(2 / 3)
    assert content["estimates"][0]["label"] == "estimate"
    assert content["whole"]["gap"] == pytest.approx(1 - 330 / content["whole"]["times"]["median_ms"])
    assert Result.read(file) == full


def test_other_files_are_refused(full, tmp_path):
    file = tmp_path / "r.json"
    for text, message in (("{", "cannot be read"), ('{"schema_version": 99}', "schema_version 99"), ("[]", "None"),
                          ('{"schema_version": 1, "part": "round"}', "subject")):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            Result.read(file)


def test_the_table_fits_100_columns_and_says_what_is_next(full):
    text = io.StringIO()
    show(full, Console(file=text, width=100))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert any("forward" in line and "5.0" in line and "48%" in line and "GFLOP/s" in line for line in lines)
    assert any("ESTIMATE" in line for line in lines)
    assert "Next: 67% of a round is forward" in lines[-1] + lines[-2]


def test_advice_is_about_the_largest_stage(full):
    ingest = full.stages[2].model_copy(update={"share_of_round": 0.9})
    assert "run meal-gpu ingest" in advice(full.model_copy(update={"stages": (*full.stages[:2], ingest)}))


def test_the_page_stands_alone(full):
    html = page(full)
    assert "Roofline" in html
    assert "Where a round goes" in html
    assert html.count('class="figure') == 2
    assert "(estimate)" in html
    assert "patch_entropy of a long name" in html
    assert "http" not in html.split("<script>")[0].split("</style>")[1].split("<script")[0]


@pytest.fixture
def meal_gpu(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["meal-gpu", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        streams = capsys.readouterr()
        return int(end.value.code or 0), streams.out, streams.err

    return call


def test_compare_on_the_command_line(meal_gpu, tmp_path):
    old, same, slower = tmp_path / "old.json", tmp_path / "same.json", tmp_path / "slower.json"
    result(forward=times(0.1)).write(old)
    result(forward=times(0.1, seed=1)).write(same)
    result(forward=times(0.2)).write(slower)
    assert meal_gpu("bench", "compare", old, same)[0] == 0
    code, out, _ = meal_gpu("bench", "compare", old, slower)
    assert code == 1
    assert "slower forward: 10" in out
    assert meal_gpu("bench", "compare", old, slower, "--tolerance", "150%")[0] == 0
    code, _, err = meal_gpu("bench", "compare", old, tmp_path / "none.json")
    assert code == 2
    assert "none.json" in err


def test_a_comparison_fails_only_where_it_stays_slower(tmp_path, capsys):
    old, quick, slow = tmp_path / "old.json", result(forward=times(0.1, seed=1)), result(forward=times(0.2))
    result(forward=times(0.1)).write(old)
    measured(lambda: slow, None, old, "10%", None, again=lambda names: quick)
    shown = capsys.readouterr()
    assert "Measuring again what seems slower: forward." in shown.err
    assert "No regression" in shown.out
    with pytest.raises(typer.Exit) as ended:
        measured(lambda: slow, None, old, "10%", None)
    assert ended.value.exit_code == 1
    assert "slower forward: 10" in capsys.readouterr().out


def test_a_config_instead_of_a_part_means_a_round(meal_gpu):
    """The estimate is a round's part that needs neither data nor time."""
    code, out, _ = meal_gpu("bench", "camvid", "--set", "data.root=.", "--estimate", "h100")
    assert code == 0
    assert "ESTIMATE for h100" in out
    assert "Measured" not in out
    assert "patch_entropy of the pool" in out
    assert max(map(len, out.splitlines())) <= 100
    code, _, err = meal_gpu("bench", "camvidd")
    assert code == 2
    assert "camvid" in err
    assert meal_gpu("bench", "--help")[0] == 0


def test_draw_is_for_cityscapes(meal_gpu):
    code, _, err = meal_gpu("bench", "demo", "--draw", "4")
    assert code == 2
    assert "--draw is for data.dataset cityscapes" in err


@pytest.mark.parametrize("part", ["round", "embed", "training"])
def test_what_a_part_finds_is_printed_written_and_compared(monkeypatch, meal_gpu, full, tmp_path, part):
    """The measuring itself is tested with the parts; here it has been done already."""
    def measured(config, effort, *rest, tell=None, **more):
        (tell or rest[-1])("measuring")
        return full

    monkeypatch.setattr(importlib.import_module(f"meal_gpu.bench.parts.{part}"), "run", measured)
    command = ["bench", "train" if part == "training" else part, "demo"]
    code, out, err = meal_gpu(*command, "--json", tmp_path / "r.json", "--out", tmp_path / "r.html")
    assert code == 0, err
    assert "Next:" in out
    assert Result.read(tmp_path / "r.json") == full
    assert "Roofline" in (tmp_path / "r.html").read_text()
    faster = full.stages[0].model_copy(update={"times": times(0.01, n=3)})
    full.model_copy(update={"stages": (faster, *full.stages[1:])}).write(tmp_path / "old.json")
    code, out, _ = meal_gpu(*command, "--compare", tmp_path / "old.json")
    assert code == 1
    assert "slower forward" in out
