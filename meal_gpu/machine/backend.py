"""What a run will use: device, precision and libraries, by what works on this machine, each with its reason."""

import functools
import importlib.util
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numba
import torch

from ..config import Config
from ..errors import InputError, first_line
from ..kernels import patch_entropy
from . import arithmetic, card, compiling, heap, rapids

P = ParamSpec("P")
R = TypeVar("R")
_log = logging.getLogger("meal_gpu")


@dataclass(frozen=True)
class Backend:
    """The choices of a run, each with the reason for it."""

    device: torch.device
    device_reason: str
    dtype: torch.dtype
    """Autocast dtype of the network; float32 means no autocast."""
    dtype_reason: str
    umap: str
    umap_reason: str
    kmeans: str
    """Of ``query.selector: kmeans``."""
    kmeans_reason: str
    loader: str
    """``dali`` or ``torchvision``"""
    loader_reason: str
    stream: str
    """How frames come from the store: ``mapped`` (cut on the host, where they lie) or ``dali`` (cut on the device)"""
    stream_reason: str
    budget_bytes: int
    """Device memory that the pool and the feature cache may take."""
    fold_norms: bool = False
    """See `meal_gpu.network.fold`."""
    compile: str = "none"
    """``none``, ``graphs`` or ``inductor``"""
    compile_reason: str = "asked for"
    tf32: bool = False
    """Whether CUDA may round the inputs of float32 products."""
    deterministic: bool = True

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def precision(self) -> str:
        """``float32``, ``tf32`` or ``bfloat16``"""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    def repeatable(self) -> AbstractContextManager[None]:
        """Around training: what would add in a changing order raises, unless ``model.deterministic`` is false."""
        return arithmetic.repeatable(self.deterministic and self.device.type == "cuda")

    def shared(self, config: Config, n: int) -> Config:
        """The config for each of n processes on this machine: memory that was not asked for is divided among them."""
        if config.data.budget_gb is not None:
            return config
        return config.revised("data", budget_gb=round(self.budget_bytes / n / 1e9, 3))

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """A function of tensors as ``compile`` says: itself, replayed as a CUDA graph, or compiled by inductor.

        Networks of one architecture and batches of one shape share what is recorded. The next call of any compiled
        function overwrites the results: copy what is to stay.
        """
        return compiling.compiled(function, self.compile, self.device)

    def choices(self) -> dict[str, str]:
        """What was chosen and why, for people."""
        return {
            "device": f"{self.device.type} ({self.device_reason})",
            "precision": f"{self.precision} ({self.dtype_reason})",
            "compile": f"{self.compile} ({self.compile_reason})",
            "batch-norms": "folded for scoring and evaluation" if self.fold_norms else "as they are",
            "umap": f"{self.umap} ({self.umap_reason})",
            "k-means": f"{self.kmeans} ({self.kmeans_reason})",
            "loader": f"{self.loader} ({self.loader_reason})",
            "streaming": f"{self.stream} ({self.stream_reason})",
            "memory budget": f"{self.budget_bytes / 1e9:.1f} GB for the resident pool and the feature cache",
        }


def resolve(config: Config, embeds: bool = True) -> Backend:
    """Choose device, precision and backends.

    ``embeds``: whether anything is to be embedded. Where not, `umap.backend: auto` tries nothing: cuML takes seconds to
    import and a context of its own on the device.

    Raises `InputError` for an explicit choice that this machine does not have.
    """
    if config.threads == "auto":
        card.settle_threads()
    _start_threads()
    device, device_reason = _device(config.device)
    if device.type == "cpu":
        heap.keep_freed()  # for the whole process, as its threads are
    dtype, dtype_reason = _dtype(config.model.precision, device)
    tf32 = config.model.precision == "tf32"
    if device.type == "cuda":
        arithmetic.settle(tf32, config.model.deterministic)

    @functools.cache  # asked twice at most, and cuML takes seconds to import
    def trouble() -> str | None:
        if device.type == "cpu":
            return "cuML works in CUDA memory, and the run is on the CPU"
        return rapids.trouble()

    def umap_trouble() -> str | None:
        unknown = config.umap.metric in rapids.MISSING_METRICS
        return f"cuML does not measure umap.metric '{config.umap.metric}'" if unknown else trouble()

    if embeds or config.umap.backend == "cuml":
        umap, umap_reason = _library("umap.backend", config.umap.backend, "umap-learn", umap_trouble)
    else:
        umap, umap_reason = "umap-learn", "not used: nothing is embedded here"
    kmeans, kmeans_reason = "sklearn", "not used: query.selector is seeding"
    if config.query.selector == "kmeans" or config.query.kmeans == "cuml":
        kmeans, kmeans_reason = _library("query.kmeans", config.query.kmeans, "sklearn", trouble)
    if config.data.budget_gb is not None:
        budget = int(config.data.budget_gb * 1e9)
    else:
        budget = card.free_bytes(device) // 2
    loader, loader_reason = find_loader(config.data.loader)
    stream, stream_reason = _stream(config, device, loader)
    return Backend(device, device_reason, dtype, dtype_reason, umap, umap_reason, kmeans, kmeans_reason, loader,
                   loader_reason, stream, stream_reason, budget, config.model.fold_norms, config.model.compile,
                   compiling.ready(config.model.compile, device), tf32, config.model.deterministic)


def find_loader(wanted: str) -> tuple[str, str]:
    """What ``data.loader`` stands for on this machine, ``dali`` or ``torchvision``, and why.

    Raises `InputError` where DALI is asked for and not installed.
    """
    if wanted == "torchvision":
        return "torchvision", "asked for"
    try:
        installed = importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # of the parent package
        installed = False
    if installed:
        return "dali", "asked for" if wanted == "dali" else "installed"
    if wanted == "dali":
        raise InputError("data.loader is 'dali', but NVIDIA DALI is not installed: pip install nvidia-dali-cuda130 (on "
                         "Linux), or use data.loader: auto or torchvision.")
    return "torchvision", "NVIDIA DALI is not installed"


def _stream(config: Config, device: torch.device, loader: str) -> tuple[str, str]:
    """Raises `InputError` where DALI is to stream while graphs are recorded.

    It gives memory back from a thread of its own, which waits for the whole device first, and CUDA ends a recording
    that somebody waits for in this way. Nothing tells when it will.
    """
    records = config.model.compile != "none" and device.type == "cuda"
    if config.data.loader == "dali":
        if records:
            raise InputError(f"data.loader is 'dali' and model.compile is '{config.model.compile}': DALI waits for the "
                             "device when it likes, which CUDA forbids while a graph is recorded. Use data.loader: "
                             "auto (DALI decodes the store then, and streams nothing), or model.compile: none.")
        return "dali", "asked for"
    if device.type == "cpu":
        return "mapped", "frames are cut where the store is in memory"
    if loader != "dali":
        return "mapped", "the loader is not DALI"
    if records:
        return "mapped", "model.compile records graphs, which DALI could disturb"
    return "dali", "it cuts on the device"


def announce(backend: Backend, config: Config) -> None:
    """Log a line for each automatic choice that this run depends on, and a warning where a GPU is left idle."""
    wanted: dict[str, str] = {"device": config.device, "umap": config.umap.backend}
    if config.query.selector == "kmeans":
        wanted["k-means"] = config.query.kmeans
    for name, choice in backend.choices().items():
        if wanted.get(name) == "auto":
            _log.info("%s: %s", name, choice)
    if config.device == "auto" and backend.device.type == "cpu" and torch.cuda.is_available():
        _log.warning("THE GPU IS NOT USED: %s. The run goes on on the CPU, many times slower; with device: cuda it "
                     "would stop here instead.", backend.device_reason)


def _start_threads() -> None:
    """Start numba's threads, as many as PyTorch's, and give PyTorch its own number back.

    Starting them sets the OpenMP thread count of the whole process. If that happened with the first kernel call, in
    the middle of a run, and with another number, PyTorch would split its sums differently from then on.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)


def _device(wanted: str) -> tuple[torch.device, str]:
    if wanted == "cpu":
        return torch.device("cpu"), "asked for"
    why_not = _cuda_trouble()
    if why_not is None:
        return torch.device("cuda"), "asked for" if wanted == "cuda" else f"found {torch.cuda.get_device_name()}"
    if wanted == "cuda":
        raise InputError(f"device is 'cuda', but {why_not}. Use device: cpu or auto; CUDA needs an NVIDIA driver and "
                         f"{rapids.EXTRA}. `meal-gpu info` says what it finds.")
    return torch.device("cpu"), why_not


def _cuda_trouble() -> str | None:
    """Why a run cannot be on CUDA here; None if it can, for the score kernel has run there."""
    if torch.version.cuda is None:
        return f"this PyTorch, {torch.__version__}, was built without CUDA"
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except Exception as error:  # it differs with what is missing, and is only told
            return f"no CUDA device is usable: {first_line(error).split('. ')[0]}"
        return "no CUDA device is usable"
    try:
        patch_entropy(torch.zeros(1, 2, 2, 2, device="cuda"), (2, 2), (1, 1)).item()
    except ImportError:
        return f"CuPy, which compiles the score kernel, is not installed: {rapids.EXTRA}"
    except Exception as error:  # whatever the driver, NVRTC and CuPy raise
        return f"a first call of the score kernel failed: {first_line(error)}"
    return None


def _library(key: str, wanted: str, on_host: str, trouble: Callable[[], str | None]) -> tuple[str, str]:
    """cuML or the library on the host, and the reason. ``trouble`` says why cuML cannot be used, if so."""
    if wanted == on_host:
        return on_host, "asked for"
    why_not = trouble()
    if why_not is None:
        return "cuml", "asked for" if wanted == "cuml" else "a first call of it succeeded"
    if wanted == "cuml":
        raise InputError(f"{key} is 'cuml', but {why_not}. Use {key}: auto or {on_host}; cuML needs an NVIDIA driver "
                         f"and {rapids.EXTRA}. `meal-gpu info` says what it finds.")
    return on_host, why_not


def _dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Raises `InputError` where TF32 is asked for and nothing here rounds so."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Absent before torch 2.10; without it float32 is chosen, which is right everywhere.
        flags: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))
    if wanted == "tf32":
        if not (on_gpu and native):  # the same GPUs have both
            where = torch.cuda.get_device_name() if on_gpu else "the CPU"
            raise InputError("model.precision is 'tf32', which needs a GPU of compute capability 8.0 or more; this run "
                             f"is on {where}. Use model.precision: auto, float32 or bfloat16.")
        return torch.float32, "asked for"
    if wanted == "bfloat16" and on_gpu and not native:
        return torch.bfloat16, "asked for; this GPU emulates it, slower than float32"
    if wanted != "auto":
        return getattr(torch, wanted), "asked for"
    if native:
        return torch.bfloat16, "the processor multiplies it natively"
    return torch.float32, "the processor has no native bfloat16"
