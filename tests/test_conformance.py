"""The calls into CuPy, cuML, DALI and Dask against the installed packages: no device is needed.

The calls are read out of the one file that makes them, so that a test cannot fall behind it, and their arguments are
bound to the real signatures; no keyword may end in a callee's ``**kwargs``, where a signature takes anything, unless it
is listed here. What a device would compute is not seen here; `meal-gpu selfcheck` does that there. CuPy, cuML and
Dask-CUDA come with the extra ``meal-gpu[cuda]``.
"""

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from foreign_calls import Call, Instance, bind, calls_of

from meal_gpu.config import UmapConfig
from meal_gpu.kernels import SCORES, confusion_cuda, entropy_cuda, nvrtc
from meal_gpu.machine import rapids
from meal_gpu.sharding import cluster

ROOT = Path(__file__).parents[1]
NAMES = ("cuml", "cupy", "rmm", "dask_cuda")
missing = [name for name in NAMES if importlib.util.find_spec(name) is None]
extra = pytest.mark.skipif(bool(missing), reason=f"without the extra meal-gpu[cuda] ({', '.join(missing)}) there is "
                           "nothing to conform to")


def our_calls() -> Iterator[tuple[str, Call]]:
    """All calls of the files that wrap the libraries, and the launches."""
    for call in calls_of(inspect.getsource(rapids), "cuml"):
        yield "rapids", call
    import cupy

    module = Instance(cupy.RawModule)
    known = {"_cupy": cupy, "_kernels": Instance(cupy.cuda.Function), "_kernel": Instance(cupy.cuda.Function)}
    returns = {cupy.RawModule: module, cupy.RawModule.get_function: Instance(cupy.cuda.Function)}
    for file in (nvrtc, entropy_cuda, confusion_cuda):
        for call in calls_of(inspect.getsource(file), "cupy", known, returns):
            yield file.__name__, call


@extra
def test_every_call_into_the_libraries_takes_its_arguments():
    seen = []
    for file, call in our_calls():
        if getattr(call.callee, "__qualname__", "") != "Function.__call__":  # below
            try:
                bind(call)
            except TypeError as error:
                pytest.fail(f"{file}:{call.line}: {call.text}: {error}")
        seen.append(call.text)
    # So that the list above does not become empty unnoticed.
    assert sorted(seen) == ["KMeans", "UMAP", "_cupy().RawModule", "cupy.cuda.Stream.from_external", "kernel",
                            "means.fit", "module.get_function", "reducer.fit_transform", "reducer.transform",
                            "scores", "sum_partials"]


@extra
@pytest.mark.parametrize(("right", "wrong", "complaint"), [
    ("n_neighbors=", "neighbours=", "unexpected keyword argument 'neighbours'"),
    ("reducer.transform(_ready(features))", "reducer.transform(_ready(features), 3)", "too many positional"),
    ("reducer.fit_transform(", "reducer.fit_embed(", "no attribute 'fit_embed'"),
    ("means.cluster_centers_", "means.centers_", "no attribute 'centers_'"),
])
def test_a_wrong_call_is_found(right, wrong, complaint):
    source = inspect.getsource(rapids)
    assert right in source
    with pytest.raises((TypeError, AttributeError), match=complaint):
        list(map(bind, calls_of(source.replace(right, wrong), "cuml")))


def calls_of_dali(source: str) -> list[Call]:
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.tensors import TensorListGPU

    built = Instance(Pipeline)
    return calls_of(source, "nvidia", {"_decoding": built, "_reading": built}, {Pipeline.run: Instance(TensorListGPU)})


def calls_of_dask(source: str, gpus: bool) -> list[Call]:
    return calls_of(source, "dask", {"dask": lambda name: importlib.import_module(name)
                                     if gpus or name != "dask_cuda" else None}, spread={"COMMON": cluster.COMMON})


SWALLOWED = {"pipe.run": {"encoded"},  # the name of the pipeline's input, at prefetch depth 1
             "distributed.LocalCluster": {"memory_limit", "preload"},  # for the process that keeps a worker, below
             "pipeline_def": {"exec_dynamic", "exec_pipelined", "exec_async", "prefetch_queue_depth"},  # the next test
             "dask_cuda.LocalCUDACluster": {"dashboard_address", "silence_logs", "preload"}}
"""Keywords that are meant for a callee's ``**kwargs``."""


def test_no_keyword_ends_where_anything_is_taken():
    """DALI's `run` takes any keyword, and refuses it later as an input that the pipeline does not have."""
    calls = calls_of_dask(inspect.getsource(cluster), "dask_cuda" not in missing)
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        from meal_gpu.data import dali

        calls += (found := calls_of_dali(inspect.getsource(dali)))
        assert {"pipe.run", "self._pipe.run", "fn.external_source", "out.as_tensor"} <= {call.text for call in found}
        with pytest.raises(AssertionError, match="cuda_stream"):
            no_surprise(calls_of_dali(inspect.getsource(dali).replace("run(stream)", "run(cuda_stream=stream)")))
        with pytest.raises(AssertionError, match=r"\*\*words"):
            calls_of_dali(inspect.getsource(dali).replace("run(stream)", "run(**words)"))
    if not missing:
        calls += [call for _, call in our_calls() if call.callee.__qualname__ != "Function.__call__"]
    assert {"distributed.LocalCluster", "distributed.Client"} <= {call.text for call in calls}
    no_surprise(calls)
    from distributed import Nanny

    assert SWALLOWED["distributed.LocalCluster"] <= set(inspect.signature(Nanny).parameters)


def no_surprise(calls: list[Call]) -> None:
    for call in calls:
        try:
            surprising = call.swallowed - SWALLOWED.get(call.text, set())
        except (ValueError, TypeError, SyntaxError):  # compiled, without a signature to be read
            surprising = set(call.keywords)
        assert not surprising, f"{call.line}: {call.text} takes {surprising} into its **kwargs"


def test_what_a_pipeline_is_built_with_are_its_arguments_or_its_executors():
    """`pipeline_def` hands on any keyword to one of the two."""
    pipeline = pytest.importorskip("nvidia.dali.pipeline")
    from meal_gpu.data import dali

    known = set(inspect.signature(pipeline.Pipeline.__init__).parameters)
    built = [node for node in ast.walk(ast.parse(inspect.getsource(dali))) if isinstance(node, ast.Call)
             and ast.unparse(node.func) in ("_reading", "_decoding", "pipeline_def")]
    assert len(built) == 4
    for node in built:
        own = set(inspect.signature(getattr(dali, ast.unparse(node.func))).parameters)
        assert {word.arg for word in node.keywords} <= own | known


@extra
def test_the_cluster_of_gpus_takes_its_arguments():
    """Those that `meal-gpu sweep --cuda` gives. It hands on what it does not know: the next one must know it then."""
    import dask_cuda
    from distributed import LocalCluster

    (call,) = [node for node in ast.walk(ast.parse(inspect.getsource(cluster)))
               if isinstance(node, ast.Call) and ast.unparse(node.func) == "dask_cuda.LocalCUDACluster"]
    words = {word.arg for word in call.keywords if word.arg} | set(cluster.COMMON)
    assert words == {"threads_per_worker", "dashboard_address", "memory_limit", "silence_logs", "preload"}
    known = {word for callee in (dask_cuda.LocalCUDACluster, dask_cuda.CUDAWorker, LocalCluster)
             for word in inspect.signature(callee).parameters}
    assert words <= known


@extra
def test_a_kernel_is_launched_with_the_arguments_that_cupy_takes():
    """Its signature is nowhere to be read: the call itself must get as far as asking for a device."""
    import cupy

    launches = [call for _, call in our_calls() if call.callee.__qualname__ == "Function.__call__"]
    assert {call.args for call in launches} == {4}  # self, grid, block, arguments
    assert {word for call in launches for word in call.keywords} == {"shared_mem"}
    kernel = cupy.cuda.Function.__new__(cupy.cuda.Function)
    with pytest.raises(TypeError, match="shared_bytes"):
        kernel((1, 1, 1), (128,), (np.uintp(0), np.int32(1)), shared_bytes=0)
    if not torch.cuda.is_available():
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            kernel((1, 1, 1), (128,), (np.uintp(0), np.int32(1)), shared_mem=0)


@extra
def test_the_kernel_runs_on_a_stream_of_pytorch():
    """CuPy reads the stream's address by the protocol that PyTorch's streams have."""
    import cupy

    class Stream:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 0

    assert cupy.cuda.Stream.from_external(Stream()).ptr == 0
    assert hasattr(torch.cuda.Stream, "__cuda_stream__")


@extra
@pytest.mark.parametrize("arch", [75, 80, 90, 100])
@pytest.mark.parametrize("score", SCORES)
def test_the_compiler_that_cupy_uses_takes_the_kernel(score, arch):
    """NVRTC needs no device when it is told the architecture: 19 classes, bfloat16, with and without upsampling."""
    from cupy_backends.cuda.libs import nvrtc as compiler

    variants = [entropy_cuda.launch_plan((1, 19, *size), (19 * size[0] * size[1], size[0] * size[1], size[1], 1),
                                         torch.bfloat16, (64, 128), (4, 4), score, True, False).variant
                for size in ((16, 32), (64, 128))]
    others = [confusion_cuda.Variant("BFloat16", staged) for staged in (True, False)]
    for text in (entropy_cuda.source(variants), confusion_cuda.source(others)):
        program = compiler.createProgram(text, "kernel.cu", (), ())
        try:
            compiler.compileProgram(program, (*nvrtc.OPTIONS, "-ftz=true", f"-arch=sm_{arch}"))
            assert len(compiler.getCUBIN(program)) > 1000
        finally:
            compiler.destroyProgram(program)


@extra
def test_cuml_knows_the_values_that_it_is_given():
    from cuml.cluster import KMeans
    from cuml.manifold.umap.umap import coerce_metric

    for metric in get_args(UmapConfig.model_fields["metric"].annotation):
        if metric in rapids.MISSING_METRICS:
            with pytest.raises(ValueError, match=metric):
                coerce_metric(metric)
        else:
            coerce_metric(metric, sparse=False, build_algo="brute_force_knn")
    text = inspect.getsource(rapids)
    manual = importlib.import_module("cuml.manifold").UMAP.__doc__
    for word in ("brute_force_knn", "spectral", "random"):
        assert f'"{word}"' in text
        assert f"'{word}'" in manual or f"`{word}`" in manual
    assert "'k-means++'" in KMeans.__doc__
    KMeans(n_clusters=3, random_state=2**31 - 1, n_init=1, init="k-means++")._validate_fit_params()


@extra
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_with_the_extra_and_without_a_device():
    """cuML says why it cannot; asking for CUDA ends with one message and code 2."""
    assert "a first embedding with cuML failed: " in (rapids.trouble() or "")
    ended = subprocess.run([sys.executable, "-m", "meal_gpu.cli", "run", "demo", "--set", "device=cuda"],
                           capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "error device is 'cuda', but" in ended.stderr
    assert "meal-gpu[cuda]" in ended.stderr


# --- without the extra ------------------------------------------------------------------------------------------------


IMPORT_EVERYTHING = """
import importlib, importlib.abc, pkgutil, sys

heavy, tried = {"cuml", "cupy", "cudf", "rmm", "dask_cuda", "dask", "umap", "sklearn.cluster"}, set()

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in {"cuml", "cupy", "cudf", "rmm", "dask_cuda"}:
            tried.add(name)
            raise ImportError("refused: " + name)

sys.meta_path.insert(0, Refuse())
import meal_gpu
for module in pkgutil.walk_packages(meal_gpu.__path__, "meal_gpu."):
    importlib.import_module(module.name)
from meal_gpu.machine.backend import resolve
resolve(meal_gpu.Config.load({}, ["device=cpu", "query.selector=kmeans"]))
import torch
from meal_gpu.strategies.select import seed_kmeans, snap_kmeans
seed_kmeans(torch.rand(9, 2), 3, torch.rand(3, dtype=torch.float64))
assert not tried, tried
assert not heavy & set(sys.modules), heavy & set(sys.modules)
snap_kmeans(torch.rand(9, 2), 3, 0)
assert "sklearn.cluster" in sys.modules and not tried
"""


def test_a_backend_is_imported_when_it_is_chosen_and_not_before():
    """All of meal_gpu, in a fresh interpreter in which the extra cannot be imported."""
    ended = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
