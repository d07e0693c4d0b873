"""The estimate of `info`: arithmetic over a data sheet, labelled, and of every stage that a round has."""

import pytest
from tiny import tiny_backend, tiny_config
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.config import Config
from meal_gpu.planning import estimate
from meal_gpu.planning.estimate import DATA_SHEETS, LAUNCH_S, Cost, counts, describe
from meal_gpu.planning.roofline import Roofs, Work
from meal_gpu.planning.sizing import Extent
from meal_gpu.planning.traffic import of_stages

CITYSCAPES = Extent(19, 2975, 500, True, 2048 * 1024)


def seconds(text: str) -> float:
    value, unit = text.split(" ")[:2]
    return float(value) * {"s": 1, "min": 60, "ms": 1e-3}[unit]


def stages(monkeypatch, *overrides: str) -> dict[str, str]:
    """Of full-scale Cityscapes, without its files."""
    monkeypatch.setattr(estimate, "usable_cores", lambda: 8)
    shown = describe(Config.load("cityscapes", [*overrides]), tiny_backend(), CITYSCAPES)
    return {key.strip(): text for key, text in shown.items()}


def test_full_scale_cityscapes(monkeypatch):
    """The kernel by hand: 18 exponentials a pixel, as the largest class needs none."""
    shown = stages(monkeypatch)
    assert list(shown) == ["a round", "decode", "features", "forward", "kernel", "embed", "train", "evaluate"]
    assert "ESTIMATE, not measured" in shown["a round"]
    assert "3.35 TB/s, 989 TFLOP/s" in shown["a round"]
    assert "`meal-gpu bench` measures this machine's CPU" in shown["a round"]
    seconds = 2975 * 512 * 1024 * 18 / DATA_SHEETS["h100"].exps
    assert shown["kernel"] == f"{1e3 * seconds:.2g} ms for 47,600 patches"
    assert shown["decode"].startswith(f"{3475 * 2048 * 1024 / 45e6 / 8:.3g} s once, were all files PNG of 2.10 Mpixel")
    assert "once per seed" in shown["embed"]
    assert "25 epochs on 256 patches" in shown["train"]
    assert "25 times 500 images" in shown["evaluate"]


def test_launches_and_the_hosts_time_are_named_and_the_slower_rules(monkeypatch):
    """500 images in 16 batches of 32, 25 times, bound by the GPU; 800 steps, by the host. Graphs leave the GPU's."""
    moved, shown = of_stages(Config.load("cityscapes"), 19), stages(monkeypatch)
    launches, steps = moved["evaluation"].launches * 25 * 16, moved["training"].launches * 800
    gpu = moved["evaluation"].bytes * 25 * 16 / DATA_SHEETS["h100"].bytes
    assert shown["evaluate"].startswith(f"{gpu:.3g} s (GPU {gpu:.3g} s, host {launches * LAUNCH_S:.2g} s for "
                                        f"{launches:,} launches)")
    assert shown["train"].startswith(f"{steps * LAUNCH_S:.3g} s (GPU ")
    assert f"host {steps * LAUNCH_S:.3g} s for {steps:,} launches" in shown["train"]
    graphs, copied = stages(monkeypatch, "model.compile=graphs")["evaluate"], moved["evaluation"].copied * 25 * 16
    gpu += 2 * copied / DATA_SHEETS["h100"].bytes
    assert graphs.startswith(f"{gpu:.3g} s (GPU {gpu:.3g} s, replayed as graphs, with {copied / 1e9:.2g} GB of copies)")


def test_the_slower_of_gpu_and_host_counts():
    assert Cost(2.0, 10).seconds == 2.0
    assert Cost(1e-6, 10).seconds == pytest.approx(10 * LAUNCH_S)
    assert Cost(1e-6, 10, eager=False).seconds == 1e-6


def test_a_camvid_round_is_bound_by_launches(monkeypatch):
    """It said "at least 82 ms", where some 140,000 launches alone are more than a second of host."""
    found = describe(Config.load("camvid"), tiny_backend(), Extent(11, 367, 101, True, 360 * 480))["a round"]
    assert 1.0 < float(found.removeprefix("at least ").split(" s ")[0]) < 4.0


def test_what_a_run_does_otherwise(monkeypatch):
    tuned = stages(monkeypatch, "model.freeze_backbone=false", "query.strategy=meal_ft", "train.eval_every=2")
    assert tuned["features"] == "within forward and train"
    assert "in every round" in tuned["embed"]
    assert "13 times" in tuned["evaluate"]
    assert stages(monkeypatch, "query.strategy=entropy")["embed"] == "nothing"
    one, five = stages(monkeypatch, "query.strategy=bald"), stages(monkeypatch, "query.strategy=ensemble_votes")
    for stage in ("forward", "train", "evaluate"):
        assert "of each of 5 networks (query.members)" in five[stage]
        assert "networks" not in one[stage]
    assert seconds(five["train"]) == pytest.approx(5 * seconds(one["train"]), rel=0.05)
    monkeypatch.setattr(estimate, "card", lambda: {"gpu": "NVIDIA A100-SXM4-80GB"})
    assert "on an A100: an ESTIMATE" in stages(monkeypatch)["a round"]


def test_work_grows_with_the_pool():
    config = Config.load("cityscapes")
    small, large = (counts(config, n, 100, 19) for n in (800, 1600))
    for stage in ("features of the pool", "forward over the pool", "patch_entropy of the pool"):
        assert large[stage].flops == pytest.approx(2 * small[stage].flops, rel=0.01)
        assert large[stage].exps == 2 * small[stage].exps


def test_the_slowest_rate_bounds():
    sheet = Roofs(0, "bfloat16", bytes=10.0, flops=100.0)
    assert sheet.least(Work(bytes=20, flops=100)) == (2.0, "memory")
    assert sheet.least(Work(bytes=20, flops=500, exps=10**9)) == (5.0, "FLOP")
    assert sheet.least(Work()) == (0.0, "")


def test_info_shows_it(tmp_path):
    (tmp_path / "tiny.yaml").write_text(tiny_config(tmp_path).dump())
    shown = CliRunner().invoke(cli.app, ["info", str(tmp_path / "tiny.yaml")])
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    assert "an ESTIMATE, not measured" in text
    assert "decode nothing: its scenes are drawn" in text
