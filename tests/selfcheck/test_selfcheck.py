"""`meal-gpu selfcheck`: every check holds here or says why it cannot run, and every check can fail.

What a check would find on a GPU is injected here; on a machine that has one, the tests marked ``gpu`` run them there.
"""

import contextlib
import itertools
import json
import shutil
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.data.frames import StreamedFrames
from meal_gpu.engine.acquire import Query
from meal_gpu.machine.backend import Backend
from meal_gpu.network import fold
from meal_gpu.selfcheck import checks, checks_device, checks_network, outcome
from meal_gpu.selfcheck import runner as selfcheck
from meal_gpu.selfcheck.checks import CHECKS
from meal_gpu.selfcheck.runner import Result, as_json, show
from meal_gpu.stages.embed import Embedding
from meal_gpu.stages.train import patch_loss

CPU = torch.device("cpu")
ON_CUDA = ["kernel cuda", "umap cuml", "kmeans cuml", "network cuda", "folded cuda", "graphs cuda", "inductor cuda",
           "run cuda", "arithmetic cuda", "streamed late", "jpeg cuda", "two runs cuda", "memory cuda"]


def one(name: str) -> Result:
    (result,) = selfcheck.selfcheck([name])
    return result


def expect(name: str, *words: str) -> None:
    result = one(name)
    assert result.state == "failed", result
    for word in words:
        assert word in result.detail


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ON_CUDA])
def test_a_check_holds_here(name):
    result = one(name)
    if result.state == "not available here":
        pytest.skip(result.detail)
    assert result.state == "ok", result
    assert result.numbers


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(CHECKS))
def test_a_check_holds_on_the_gpu(name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    result = one(name)
    assert result.state == "ok" or name in ("network cpu", "dali"), result


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", ON_CUDA)
def test_without_a_device_it_says_so(name):
    result = one(name)
    assert (result.state, result.numbers) == ("not available here", {})
    assert "CUDA" in result.detail


# --- every check can fail ---------------------------------------------------------------------------------------------


@pytest.fixture
def on_cpu(monkeypatch):
    """Lets the checks of CUDA run on the CPU."""
    monkeypatch.setattr(outcome, "cuda", lambda: CPU)


@pytest.mark.parametrize("name", ["kernel cpu", "kernel cuda"])
@pytest.mark.parametrize(("wrong", "complaint"), [
    (lambda sums, call: sums * (1 + 1e-4), "is off by 1.0e-04"), (lambda sums, call: sums * torch.nan, "off by nan"),
    (lambda sums, call: sums * (1 + 3e-7 * (call % 2)), "differs from call to call"),
])
def test_a_wrong_kernel_is_found(monkeypatch, on_cpu, name, wrong, complaint):
    kernel, calls = checks.patch_entropy, itertools.count()
    monkeypatch.setattr(checks, "patch_entropy", lambda *args, **how: wrong(kernel(*args, **how), next(calls)))
    expect(name, complaint)


@pytest.mark.parametrize("name", ["umap-learn", "umap cuml"])
def test_a_wrong_embedding_is_found(monkeypatch, on_cpu, name):
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    vectors = checks._sheet(300)
    plane = torch.linalg.svd(vectors - vectors.mean(0))[2][:2]

    def fit(x, config, seed, library="umap-learn"):
        good = name == "umap cuml" and library == "umap-learn"
        return Embedding(x @ plane.T if good else noise)

    monkeypatch.setattr(checks.embed, "fit", fit)
    expect(name, "trustworthiness 0.", "less than")
    calls = itertools.count()
    monkeypatch.setattr(checks.embed, "fit", lambda x, *args: Embedding(x @ plane.T + next(calls), lambda x: x[:, :2]))
    monkeypatch.setattr(checks, "_trust", lambda x, points: 0.99)
    expect(name, "the same seed gave other points")
    monkeypatch.setattr(checks.embed, "fit", lambda x, *args: Embedding(x @ plane.T, lambda x: -(x @ plane.T)))
    if name == "umap cuml":
        expect(name, "placed vectors are the")


def test_wrong_seeding_is_found(monkeypatch):
    monkeypatch.setattr(checks.select, "seed_kmeans", lambda points, n, uniforms: torch.arange(n))
    expect("k-means++", "of 32 ids are those of the definition on cpu")


@pytest.mark.parametrize("name", ["kmeans sklearn", "kmeans cuml"])
def test_wrong_clusters_are_found(monkeypatch, on_cpu, name):
    monkeypatch.setattr(checks.select, "snap_kmeans", lambda points, n, seed, library: 8 * torch.arange(n))
    expect(name, "1 of 8 groups found")
    monkeypatch.setattr(checks.select, "snap_kmeans", lambda points, n, seed, library: torch.tensor([3] * 8))
    expect(name, "groups found")
    calls = itertools.count()
    monkeypatch.setattr(checks.select, "snap_kmeans", lambda points, n, *how: torch.arange(n) + 8 * next(calls))
    expect(name, "the same seed gave other rows")


@pytest.mark.parametrize("name", ["network cpu", "network cuda"])
def test_a_wrong_network_is_found(monkeypatch, on_cpu, name):
    class Moved(checks_network.DeepLabV3Plus):
        """Half of the classes' biases change on the way to the device."""

        def to(self, *args, **how):
            *_, bias = self.parameters()
            bias.data[::2] += 2
            return super().to(*args, **how)

    monkeypatch.setattr(checks_network, "DeepLabV3Plus", Moved)
    monkeypatch.setattr(checks_network, "resolve", lambda config, embeds: type("B", (), {"dtype": torch.bfloat16}))
    expect(name, "logits are off by")


@pytest.mark.parametrize("name", ["folded cpu", "folded cuda"])
def test_wrong_folding_is_found(monkeypatch, on_cpu, name):
    weights = fold.fuse_conv_bn_weights
    monkeypatch.setattr(fold, "fuse_conv_bn_weights", lambda *args: [1.02 * part for part in weights(*args)])
    expect(name, "scores are off by", "more than 1e-3")


@pytest.mark.parametrize(("name", "wrong"), [("graphs cpu", 1e-6), ("graphs cuda", 1e-4), ("inductor cuda", 0.2)])
def test_compiled_code_that_computes_something_else_is_found(monkeypatch, on_cpu, name, wrong):
    def compiled(backend, function):
        if backend.compile == "none" or function is not patch_loss:
            return function
        return lambda *args: function(*args) * (1 + wrong)

    monkeypatch.setattr(Backend, "compiled", compiled)
    expect(name, "losses or scores are off by")


def test_a_wrong_pixel_is_found(monkeypatch):
    pytest.importorskip("nvidia.dali")
    scan = StreamedFrames.scan

    def wrong(self, size):
        for frames, pixels in scan(self, size):
            pixels = pixels.clone()
            pixels[-1, 2, -1, -1] += 0.01
            yield frames, pixels

    monkeypatch.setattr(StreamedFrames, "scan", wrong)
    expect("dali", "of the values differ from the store")


def test_runs_that_differ_are_found(monkeypatch):
    runs = iter([[[1, 2], [3, 4]], [[1, 2], [3, 5]]])
    monkeypatch.setattr(checks_network, "_toy_run", lambda device, **changes: next(runs))
    expect("run cpu", "the second run has 75% of the first one's queries")


def test_devices_that_ask_for_other_patches_are_found(monkeypatch, on_cpu):
    toy, queries = checks_network._toy, iter([torch.arange(8), torch.arange(8) + 4])
    monkeypatch.setattr(checks_network, "_toy", lambda device, **changes: toy("cpu", **changes))
    monkeypatch.setattr(checks_network, "acquire", lambda *args: Query(next(queries), None))
    expect("run cuda", "50% of the patches asked for are the same")


def test_a_second_read_is_found(monkeypatch):
    acquire = checks_network.acquire

    def reading(experiment, pool, *args):
        pool.labels.sum().item()
        return acquire(experiment, pool, *args)

    monkeypatch.setattr(checks_network, "acquire", reading)
    expect("transfers", "acquire.py: tolist x1", "once was expected")


def tf32(x):
    """Rounded to 10 bits of mantissa, as cuDNN may round what it multiplies."""
    bits = x.detach().contiguous().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


def test_convolutions_that_round_like_tf32_are_found(monkeypatch, on_cpu):
    convolve = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, weight, *args, **how: convolve(
        tf32(x), tf32(weight), *args, **how) if x.dtype == torch.float32 else convolve(x, weight, *args, **how))
    expect("arithmetic cuda", "a float32 convolution is off by", "as TF32 would be")


def test_noise_in_gradients_is_no_failure(monkeypatch, on_cpu):
    """An order of sums that changes by 1e-7 moves scores after two steps a hundred thousand times as far."""
    step, draw = torch.optim.Adam.step, torch.Generator().manual_seed(0)

    def noisy(self, *args):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad *= 1 + 1e-7 * torch.randn(p.grad.shape, generator=draw)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", noisy)
    result = one("graphs cuda")
    assert result.state == "ok", result
    assert result.numbers["relative_error"] <= 1e-6
    assert result.numbers["after_two_steps"] > 1e-6
    assert one("folded cuda").state == "ok"


def test_a_batch_that_was_overwritten_is_found(monkeypatch, on_cpu):
    pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    result = one("streamed late")
    assert (result.state, result.numbers) == ("ok", {"frames": 96}), result
    scan = StreamedFrames.scan

    def late(self, size):
        for frames, pixels in scan(self, size):
            yield frames, pixels.flip(0) if frames.start == 4 else pixels

    monkeypatch.setattr(StreamedFrames, "scan", late)
    expect("streamed late", "2 of 48 frames were overwritten")


def test_a_jpeg_of_other_pixels_is_found(monkeypatch, on_cpu):
    dali = pytest.importorskip("meal_gpu.data.dali")
    real = dali.DaliDecoder

    class Decoder:
        off = 0

        def __init__(self, size, threads, mixed):
            self.mixed, self.cpu = mixed, real(size, threads, False)

        def decode(self, pictures):
            off = self.off * self.mixed
            return [(pixels // 2 + off).astype(pixels.dtype) for pixels in self.cpu.decode(pictures)]

    monkeypatch.setattr(dali, "DaliDecoder", Decoder)
    for off, state in ((0, "ok"), (9, "failed")):
        monkeypatch.setattr(Decoder, "off", off)
        assert one("jpeg cuda").state == state


def test_runs_on_cuda_that_differ_are_found(monkeypatch, on_cpu):
    runs = itertools.cycle([[[1, 2], [3, 4]], [[1, 2], [3, 4]], [[1, 2], [3, 4]], [[1, 2], [3, 5]]])
    monkeypatch.setattr(checks_network, "_toy_run", lambda device, **changes: next(runs))
    expect("two runs cuda", "the second run has 75% of the first one's queries (finetuned")


def test_memory_that_nobody_foretold_is_found(monkeypatch, on_cpu):
    small = {"data": {"dataset": "demo", "image_size": [64, 96], "grid": [2, 3]}, "device": "cpu",
             "model": {"backbone": "mobilenetv2_035", "weights": "none", "cache_features": "never"}}
    monkeypatch.setattr(checks_device, "MEASURED", small)
    monkeypatch.setattr("meal_gpu.network.features.BATCH_PIXELS", 9 * 64 * 96)
    for name, value in (("synchronize", None), ("reset_peak_memory_stats", None), ("memory_allocated", 5)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for peak, state in ((10**6, "ok"), (10**12, "failed")):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda peak=peak: peak)
        found = one("memory cuda")
        assert found.state == state
        assert found.numbers["scoring_images"] == 9  # the batch that is measured is the one that is foretold
    expect("memory cuda", "scoring took 1000.00 GB at its peak, and info says")


def test_without_a_compiler_inductor_is_not_available_and_not_broken(monkeypatch, on_cpu):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = one("inductor cuda")
    assert result.state == "not available here"
    assert "compiler" in result.detail


def test_an_evaluation_that_waits_twice_is_found(monkeypatch):
    def reading(model, features, *args):
        features.means[features.low_size][0].sum().item()
        return evaluate(model, features, *args)

    evaluate = checks_device.evaluate
    def sending(model, features, *args):
        with contextlib.suppress(Exception):  # no device is here to take it
            torch.tensor([1.0], device="cuda")
        return evaluate(model, features, *args)

    for waits_twice, place in ((reading, "checks_device.py: item"), (sending, ": tensor")):
        monkeypatch.setattr(checks_device, "evaluate", waits_twice)
        expect("waits", "waits for the device at", place, "evaluate.py: tolist x1", "once was expected")


ABSENT = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("nvidia.dali", "cuml", "dask", "distributed", "dask_cuda", "rmm", "cudf"):
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Refuse())
from meal_gpu.selfcheck.runner import as_json, selfcheck
names = ["dali", "streamed late", "jpeg cuda", "umap cuml", "kmeans cuml", "k-means++", "waits"]
print(json.dumps([(result.name, result.state, result.detail) for result in selfcheck(names)]))
as_json([])
"""


def test_a_library_that_is_absent_is_no_failure():
    """In a process of its own, in which DALI, cuML and Dask cannot be found: nothing fails, and nothing crashes."""
    done = subprocess.run([sys.executable, "-c", ABSENT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    states = {name: (state, detail) for name, state, detail in json.loads(done.stdout.splitlines()[-1])}
    assert {state for state, _ in states.values()} == {"ok", "not available here"}, states
    assert states["dali"][0] == "not available here"
    assert {states["k-means++"][0], states["waits"][0]} == {"ok"}


def test_whatever_a_backend_raises_fails_its_check_and_no_other(monkeypatch):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    monkeypatch.setitem(CHECKS, "dali", broken)
    monkeypatch.setitem(CHECKS, "run cpu", lambda: ("fine", {"x": 1.0}))
    assert [(result.state, result.detail) for result in selfcheck.selfcheck(["dali", "run cpu"])] == [
        ("failed", "RuntimeError: CUDA error: an illegal memory access"), ("ok", "fine")]


# --- the command ------------------------------------------------------------------------------------------------------

FOUND = [Result("kernel cpu", "ok", "off by 7.2e-08 of float64 at most; repeats itself to the bit", 1.0, {"x": 1.0}),
         Result("kernel cuda", "not available here", "no CUDA device is usable", 0.0),
         Result("network cuda", "failed", "bfloat16 logits are off by 2.1e-01 of their spread, more than 0.1; 61.0% of "
                                          "the pixels have the same class [x]", 2.0, {"relative_error": 0.21})]


@pytest.mark.parametrize("width", [80, 100])
def test_lines_fit_the_terminal(width, capsys):
    show(FOUND, 3, Console(width=width, file=sys.stdout))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("kernel cpu")
    assert "ok: off by 7.2e-08" in lines[0]
    assert lines[-3].startswith("  " * 8)  # what does not fit goes on beside the name
    assert lines[-1] == "1 ok, 1 failed, 1 not available here"
    assert any("[x]" in line for line in lines)


@pytest.mark.parametrize(("found", "code"), [(FOUND, 1), (FOUND[:2], 0)])
def test_the_command_says_by_its_code_whether_all_is_well(monkeypatch, tmp_path, found, code):
    monkeypatch.setattr(selfcheck, "selfcheck", lambda: iter(found))
    ended = CliRunner().invoke(cli.app, ["selfcheck", "--json", str(tmp_path / "found.json")])
    assert ended.exit_code == code
    card = json.loads((tmp_path / "found.json").read_bytes())
    again = json.loads(as_json(found))
    for each in (card, again):  # of the memory that is free at this moment
        assert each["choices"].pop("memory budget")
    assert card == again
    assert [check["state"] for check in card["checks"]] == [result.state for result in found]
    assert {"torch", "cpu"} <= set(card["machine"])
    assert "device" in card["choices"]
