"""The choices of a run and their reasons, on the machine that the tests run on."""

import os
import re
import subprocess
import sys

import pytest
import torch

from meal_gpu.config import Config
from meal_gpu.errors import InputError
from meal_gpu.machine import arithmetic, backend
from meal_gpu.machine.backend import announce, resolve
from meal_gpu.strategies.select import find_strategy

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def test_what_is_asked_for_is_taken():
    chosen = resolve(Config.load({}, ["device=cpu", "model.precision=bfloat16", "umap.backend=umap-learn",
                                       "data.budget_gb=1.5"]))
    assert chosen.device == torch.device("cpu")
    assert chosen.dtype == torch.bfloat16
    assert chosen.budget_bytes == 1_500_000_000
    assert {chosen.device_reason, chosen.dtype_reason, chosen.umap_reason} == {"asked for"}
    assert chosen.choices()["memory budget"].startswith("1.5 GB")


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_autocast_multiplies_in_the_chosen_precision(precision, dtype):
    chosen = resolve(Config.load({}, ["device=cpu", f"model.precision={precision}"]))
    x = torch.randn(3, 3)
    with chosen.autocast():
        assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32


@no_cuda
def test_cuda_that_is_not_there_is_refused_and_auto_takes_the_cpu():
    with pytest.raises(InputError, match=r"device is 'cuda', but .*Use device: cpu or auto"):
        resolve(Config.load({}, ["device=cuda"]))
    chosen = resolve(Config())
    assert chosen.device.type == "cpu"
    assert "CUDA" in chosen.device_reason


@pytest.mark.parametrize(("key", "host"), [("umap.backend", "umap-learn"), ("query.kmeans", "sklearn")])
def test_cuml_on_the_cpu_is_refused(key, host):
    with pytest.raises(InputError, match=rf"{key} is 'cuml', but .*Use {key}: auto or {host}; .*meal-gpu\[cuda\]"):
        resolve(Config.load({}, [f"{key}=cuml", "device=cpu"]))


@pytest.fixture
def with_cuda(monkeypatch):
    """A machine on which everything works, as far as choosing goes; returns the reasons that a test may put there."""
    trouble: dict[str, str | None] = {"cuda": None, "cuml": None}
    monkeypatch.setattr(backend, "_cuda_trouble", lambda: trouble["cuda"])
    monkeypatch.setattr(backend.rapids, "trouble", lambda: trouble["cuml"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * 10**9, 80 * 10**9))
    return trouble


def test_auto_takes_cuda_and_cuml_where_they_work(with_cuda):
    chosen = resolve(Config.load({}, ["query.selector=kmeans", "data.loader=torchvision"]))
    assert chosen.choices() == {
        "device": "cuda (found NVIDIA H100)", "precision": "bfloat16 (the processor multiplies it natively)",
        "compile": "none (asked for)", "batch-norms": "as they are",
        "umap": "cuml (a first call of it succeeded)", "k-means": "cuml (a first call of it succeeded)",
        "loader": "torchvision (asked for)", "streaming": "mapped (the loader is not DALI)",
        "memory budget": "40.0 GB for the resident pool and the feature cache"}
    asked = resolve(Config.load({}, ["device=cuda", "umap.backend=umap-learn", "query.kmeans=cuml"]))
    assert (asked.device.type, asked.umap, asked.kmeans) == ("cuda", "umap-learn", "cuml")
    assert {asked.device_reason, asked.umap_reason, asked.kmeans_reason} == {"asked for"}


def test_auto_says_what_does_not_work(with_cuda):
    with_cuda["cuml"] = "cuML cannot be imported"
    chosen = resolve(Config.load({}, ["query.selector=kmeans"]))
    assert chosen.device.type == "cuda"
    assert (chosen.umap, chosen.umap_reason) == ("umap-learn", "cuML cannot be imported")
    assert (chosen.kmeans, chosen.kmeans_reason) == ("sklearn", "cuML cannot be imported")
    for key in ("umap.backend", "query.kmeans"):
        with pytest.raises(InputError, match=rf"{key} is 'cuml', but cuML cannot be imported\. Use {key}: auto"):
            resolve(Config.load({}, [f"{key}=cuml"]))
    with_cuda["cuda"] = "the score kernel failed"
    chosen = resolve(Config())
    assert (chosen.device.type, chosen.device_reason) == ("cpu", "the score kernel failed")
    with pytest.raises(InputError, match=r"device is 'cuda', but the score kernel failed\. .*meal-gpu\[cuda\]"):
        resolve(Config.load({}, ["device=cuda"]))


def test_a_metric_that_cuml_lacks_is_left_to_umap_learn(with_cuda):
    assert resolve(Config.load({}, ["umap.metric=braycurtis"])).umap == "umap-learn"
    with pytest.raises(InputError, match=r"does not measure umap\.metric 'braycurtis'"):
        resolve(Config.load({}, ["umap.metric=braycurtis", "umap.backend=cuml"]))


def test_cuml_is_not_tried_where_nobody_wants_it(with_cuda, monkeypatch):
    """It takes seconds to import."""
    monkeypatch.setattr(backend.rapids, "trouble", lambda: pytest.fail("cuML was tried"))
    assert resolve(Config.load({}, ["umap.backend=umap-learn"])).umap == "umap-learn"
    resolve(Config.load({}, ["umap.backend=umap-learn", "query.selector=kmeans", "query.kmeans=sklearn"]))
    resolve(Config.load({}, ["device=cpu", "query.selector=kmeans"]))
    for strategy in ("random", "entropy"):
        chosen = resolve(Config.load({}, [f"query.strategy={strategy}"]), find_strategy(strategy).embeds)
        assert (chosen.umap, chosen.umap_reason) == ("umap-learn", "not used: nothing is embedded here")
    for strategy in ("meal", "meal_ft"):
        assert find_strategy(strategy).embeds


@pytest.mark.parametrize(("error", "reason"), [
    (ImportError("no cupy"), r"CuPy, .*, is not installed: pip install 'meal-gpu\[cuda\]'"),
    (RuntimeError("no kernel image is available\nfor this device"),
     "a first call of the score kernel failed: no kernel image is available$"),
])
def test_a_device_on_which_the_kernel_fails_is_not_used(monkeypatch, error, reason):
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    monkeypatch.setattr(backend, "patch_entropy", fail)
    assert re.match(reason, backend._cuda_trouble() or "")


def test_automatic_choices_are_announced(caplog):
    config = Config.load({}, ["device=cpu"])
    with caplog.at_level("INFO", logger="meal_gpu"):
        announce(resolve(config), config)
    assert caplog.messages == ["umap: umap-learn (cuML works in CUDA memory, and the run is on the CPU)"]


@pytest.fixture
def switches():
    """PyTorch's, put back as they were."""
    tf32, deterministic = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv(arithmetic.WORKSPACE, raising=False)
        yield
    arithmetic.settle(tf32, deterministic)
    os.environ.pop(arithmetic.WORKSPACE, None)


@pytest.mark.parametrize(("precision", "dtype", "tf32"), [
    ("float32", torch.float32, False), ("tf32", torch.float32, True), ("bfloat16", torch.bfloat16, False)])
@pytest.mark.parametrize("earlier", ["nothing", "older interface", "newer interface"])
def test_a_precision_is_what_its_name_says(with_cuda, switches, monkeypatch, precision, dtype, tf32, earlier):
    """Convolutions and products alike, whatever was set before; both of PyTorch's interfaces can be asked, and agree.

    cuDNN's default is TF32, and of the older interface's `False` alone a convolution keeps what is set for everything.
    """
    if earlier == "older interface":
        torch.backends.cudnn.allow_tf32 = not tf32
    elif earlier == "newer interface" and hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "ieee" if tf32 else "tf32"
    try:
        chosen = resolve(Config.load({}, [f"model.precision={precision}"]))
        assert (chosen.dtype, chosen.tf32, chosen.precision) == (dtype, tf32, precision)
        found = arithmetic.settled()
        assert (found.pop("deterministic"), found.pop("benchmark")) == (True, False)
        assert set(found.values()) <= {tf32, "tf32" if tf32 else "ieee"}
        with arithmetic.ieee():
            assert set(arithmetic.settled().values()) <= {False, "ieee", True}
            assert arithmetic.settled()["tf32 in convolutions"] is False
        assert arithmetic.settled()["tf32 in convolutions"] is tf32
    finally:
        if hasattr(torch.backends, "fp32_precision"):
            torch.backends.fp32_precision = "none"


def test_an_older_gpu_gets_float32(with_cuda, switches, monkeypatch):
    """A T4 multiplies neither bfloat16 nor TF32: `auto` takes float32, and says why."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    chosen = resolve(Config())
    assert chosen.choices()["precision"] == "float32 (the processor has no native bfloat16)"
    asked = resolve(Config.load({}, ["model.precision=bfloat16"]))
    assert asked.choices()["precision"] == "bfloat16 (asked for; this GPU emulates it, slower than float32)"
    with pytest.raises(InputError, match=r"'tf32', which needs a GPU of compute capability 8\.0 .* on Tesla T4"):
        resolve(Config.load({}, ["model.precision=tf32"]))
    with pytest.raises(InputError, match=r"'tf32', .* this run is on the CPU\. Use model\.precision: auto"):
        resolve(Config.load({}, ["device=cpu", "model.precision=tf32"]))


def test_equal_runs_are_equal_unless_that_is_not_wanted(with_cuda, switches):
    assert resolve(Config()).deterministic
    assert torch.backends.cudnn.deterministic
    assert os.environ[arithmetic.WORKSPACE] == ":4096:8"
    del os.environ[arithmetic.WORKSPACE]
    assert not resolve(Config.load({}, ["model.deterministic=false"])).deterministic
    assert not torch.backends.cudnn.deterministic
    assert arithmetic.WORKSPACE not in os.environ
    os.environ[arithmetic.WORKSPACE] = ":16:8"  # somebody's own choice stays
    resolve(Config())
    assert os.environ[arithmetic.WORKSPACE] == ":16:8"


def test_the_cpu_leaves_the_switches_alone(switches, monkeypatch):
    monkeypatch.setattr(arithmetic, "settle", lambda *args: pytest.fail("they are CUDA's"))
    resolve(Config.load({}, ["device=cpu"]))


def test_training_refuses_what_would_not_repeat_itself():
    for wanted in (True, False):
        with arithmetic.repeatable(wanted):
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert torch.utils.deterministic.fill_uninitialized_memory != wanted
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory


def test_dali_does_not_stream_while_graphs_are_recorded(with_cuda, switches, monkeypatch):
    """It waits for the device in a thread of its own; CUDA gives a recording up for that."""
    monkeypatch.setattr(backend, "find_loader", lambda wanted: ("dali", "installed"))
    for way in ("graphs", "inductor"):
        monkeypatch.setattr(backend.compiling, "ready", lambda wanted, device: "asked for")
        chosen = resolve(Config.load({}, [f"model.compile={way}"]))
        assert (chosen.loader, chosen.stream) == ("dali", "mapped")
        assert "DALI could disturb" in chosen.stream_reason
        with pytest.raises(InputError, match=rf"data\.loader is 'dali' and model\.compile is '{way}'.*Use data\."):
            resolve(Config.load({}, [f"model.compile={way}", "data.loader=dali"]))
    assert resolve(Config()).stream == "dali"
    assert resolve(Config.load({}, ["device=cpu", "model.compile=graphs", "data.loader=dali"])).stream == "dali"


def test_a_gpu_that_is_left_idle_is_a_warning(with_cuda, monkeypatch, caplog, capsys):
    """A kernel that did not compile there, say: whoever has a GPU must not learn it from the clock."""
    with_cuda["cuda"] = "a first call of the score kernel failed: no such instruction"
    chosen = resolve(Config())
    for there, asked, warned in ((True, "auto", 1), (False, "auto", 0), (True, "cpu", 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        caplog.clear()
        announce(chosen, Config.load({}, [f"device={asked}"]))
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == warned
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level("WARNING"):
        announce(chosen, Config())
    assert "THE GPU IS NOT USED: a first call of the score kernel failed: no such instruction." in caplog.text


def test_the_budget_is_half_of_what_is_free():
    budget = resolve(Config.load({}, ["device=cpu"])).budget_bytes
    total = backend.card.card()["memory_gb"]
    assert isinstance(total, float)
    assert 0 < budget <= total * 1e9 / 2


THREADS = """
import torch
from meal_gpu.machine import backend
from meal_gpu.config import Config
from meal_gpu.kernels import patch_entropy

backend.resolve(Config.load({"device": "cpu"}))
before = torch.get_num_threads()
patch_entropy(torch.zeros(1, 3, 4, 4), (8, 8), (2, 2))
print(before, torch.get_num_threads())
"""


def test_the_first_kernel_call_leaves_pytorchs_threads_alone():
    """In a process of its own, whose numba has not started: with fewer threads than cores they would become as many."""
    done = subprocess.run([sys.executable, "-c", THREADS], check=True, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"})
    assert done.stdout.split() == ["1", "1"]


def test_an_operation_without_an_order_is_told_in_a_sentence():
    values = torch.zeros(3)
    with (pytest.raises(InputError, match=r"cannot be trained .* \(.*put_.*\): use model\.deterministic: false"),
          arithmetic.repeatable(True)):
        values.put_(torch.tensor([0, 0]), torch.ones(2))
    with pytest.raises(RuntimeError, match="something else"), arithmetic.repeatable(True):
        raise RuntimeError("something else")
    assert not torch.are_deterministic_algorithms_enabled()
